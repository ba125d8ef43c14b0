"""From work columns to the tensors of one step: positions, input ids, and which positions give logits.

Layout of a step: B work entries, T tokens in work order (entry by entry), R sampled entries, P positions whose next
token's logprob a prompt asked for. All columns are made by numpy at once and reach the device in one copy; the input
ids are gathered there from the rows, so that a token sampled by the previous step is used without having been on the
host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from millrace_worker.staging import Staging
from millrace_worker.step import Batch

if TYPE_CHECKING:
    from millrace_worker.rows import Rows
    from millrace_worker.work import Column, Layout, Work


@dataclass(frozen=True)
class PromptInputs:
    """The prompt logprobs of a step: `entries`, `counts` (host) name the work entries and how many positions each has,
    `num_top` how many of the likeliest tokens go with each position of an entry.

    `hidden_index` [P] are places among the step's tokens, `targets` [P] the ids that stand at the next positions.
    """

    entries: Column
    counts: Column
    num_top: Column
    hidden_index: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class StepInputs:
    """Everything that the forward pass and the sampler read. Device tensors are int64 and valid until the next build.

    `token_ids`, `positions` [T].
    `sampled_rows`, `sampled_positions` [R] on the host: whose token is chosen and the position it will have.
    `logits_index` [R]: places of the last tokens of the sampled entries among the T tokens; None when these are all
    tokens, in their order.
    `store_index` [R]: where in the flat token table the chosen ids go; None when R = 0.
    """

    batch: Batch
    token_ids: torch.Tensor
    positions: torch.Tensor
    sampled_rows: Column
    sampled_positions: Column
    logits_index: torch.Tensor | None
    store_index: torch.Tensor | None
    prompt: PromptInputs | None


@dataclass(frozen=True)
class _Tokens:
    """The T tokens of a layout, on the host. `last` [B]: the place of each entry's last one. Per token: `row_begins`,
    where its row begins in the flat token table, and `offsets` from the position at which its entry starts. `logits`
    [R]: see `StepInputs.logits_index`."""

    last: Column
    row_begins: Column
    offsets: Column | None  # None: one token each, the steady state of decoding
    logits: Column | None


class InputBuilder:
    """Builds `StepInputs` into workspaces of the largest step, allocated once."""

    def __init__(self, rows: Rows) -> None:
        shape = rows.shape
        self._rows = rows
        # Per token: its position, its place in the token table, and the two columns of prompt logprobs.
        self._staging = Staging(4 * shape.max_step_tokens + 2 * shape.max_rows, rows.device)
        self._token_ids = torch.zeros(shape.max_step_tokens, dtype=torch.int64, device=rows.device)
        self._ids = self._token_ids[:0]  # as many of them as the last step had
        self._known: tuple[Layout, _Tokens] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the workspaces on the device."""
        return self._staging.num_bytes + self._token_ids.nbytes

    def build(self, work: Work) -> StepInputs:
        """Work that `Rows.check_work` let pass, with at least one entry."""
        rows, layout = self._rows, work.layout
        tokens = self._tokens_of(layout)
        positions = work.starts
        if tokens.offsets is not None:
            positions = np.repeat(work.starts, layout.counts) + tokens.offsets
        flat = tokens.row_begins + positions
        store = (flat if tokens.logits is None else flat[tokens.logits]) + 1
        asked = self._asked_prompt(work, tokens.last)
        columns = [positions, flat, store]
        if tokens.logits is not None:
            columns.append(tokens.logits)
        if asked:
            columns += [asked[2], flat[asked[2]] + 1]
        positions_T, flat_T, store_R, *others = self._staging.upload(*columns)
        if len(self._ids) != len(flat):
            self._ids = self._token_ids[: len(flat)]
        return StepInputs(
            batch=Batch(
                rows=layout.rows,
                starts=work.starts,
                counts=layout.counts,
                num_prompt_tokens=rows.num_prompt_tokens[layout.rows],
                page_table=rows.page_table,
                page_table_host=rows.page_table_host,
                lengths=rows.lengths[layout.rows],
            ),
            token_ids=torch.index_select(rows.flat_token_ids, 0, flat_T, out=self._ids),
            positions=positions_T,
            sampled_rows=layout.sampled_rows,
            sampled_positions=work.sampled_positions,
            logits_index=None if tokens.logits is None else others.pop(0),
            store_index=store_R if len(store) else None,
            prompt=self._prompt_inputs(work, asked[:2], others) if asked else None,
        )

    def _tokens_of(self, layout: Layout) -> _Tokens:
        if self._known is None or self._known[0] is not layout:
            self._known = layout, self._lay_out(layout)
        return self._known[1]

    def _lay_out(self, layout: Layout) -> _Tokens:
        begins = layout.rows * self._rows.stride
        if layout.num_tokens == len(begins):
            last = np.arange(len(begins))
            return _Tokens(last, begins, None, None if layout.samples_all else last[layout.samples])
        after = np.cumsum(layout.counts)
        offsets = np.arange(layout.num_tokens) - np.repeat(after - layout.counts, layout.counts)
        return _Tokens(after - 1, np.repeat(begins, layout.counts), offsets, (after - 1)[layout.samples])

    def _asked_prompt(self, work: Work, last_T: Column) -> tuple[Column, Column, Column] | None:
        """Entries that owe prompt logprobs, how many each, and the places of those positions among the T tokens.

        The token at position p gives the logprob of the prompt token at p + 1, so p runs from `start` and ends before
        the last prompt token and the last computed one.
        """
        rows = work.layout.rows
        asking = self._rows.prompt_logprobs[rows]
        if not np.count_nonzero(asking):
            return None
        known = np.minimum(work.ends, self._rows.num_prompt_tokens[rows] - 1) - work.starts
        entries = np.flatnonzero(asking & (known > 0))
        if not len(entries):
            return None
        counts = known[entries]
        first_T = (last_T - work.layout.counts + 1)[entries]
        before = np.cumsum(counts) - counts
        return entries, counts, np.arange(counts.sum()) + np.repeat(first_T - before, counts)

    def _prompt_inputs(self, work: Work, asked: tuple[Column, Column], places: list[torch.Tensor]) -> PromptInputs:
        """`places`: of the positions among the T tokens, and of their targets in the flat token table."""
        entries, counts = asked
        num_top = self._rows.prompt_top_tokens[work.layout.rows[entries]]
        targets = self._rows.flat_token_ids.index_select(0, places[1])
        return PromptInputs(entries, counts, num_top, places[0], targets)
