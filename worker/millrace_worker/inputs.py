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
    from millrace_worker.rows import Column, Rows, Work


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
    `logits_index` [R]: places of the last tokens of the sampled entries among the T tokens; None when R = 0.
    `samples_all`: the sampled entries' last tokens are all tokens, in their order.
    `store_index` [R]: where in the flat token table the chosen ids go.
    """

    batch: Batch
    token_ids: torch.Tensor
    positions: torch.Tensor
    sampled_rows: Column
    sampled_positions: Column
    logits_index: torch.Tensor | None
    samples_all: bool
    store_index: torch.Tensor | None
    prompt: PromptInputs | None


class InputBuilder:
    """Builds `StepInputs` into workspaces of the largest step, allocated once."""

    def __init__(self, rows: Rows) -> None:
        shape = rows.shape
        self._rows = rows
        # Per token: its position, its place in the token table, and the two columns of prompt logprobs.
        self._staging = Staging(4 * shape.max_step_tokens + 2 * shape.max_rows, rows.device)
        self._token_ids = torch.zeros(shape.max_step_tokens, dtype=torch.int64, device=rows.device)
        self._arange = np.arange(shape.max_step_tokens, dtype=np.int64)

    @property
    def num_bytes(self) -> int:
        """Bytes of the workspaces on the device."""
        return self._staging.num_bytes + self._token_ids.nbytes

    def build(self, work: Work) -> StepInputs:
        """Work that `Rows.check_work` let pass, with at least one entry."""
        rows = self._rows
        ends = work.starts + work.counts
        last_T, row_of_T, positions = self._lay_out(work)
        flat = row_of_T * rows.stride + positions
        sampled_rows, sampled_positions = work.rows[work.samples], ends[work.samples]
        store = sampled_rows * rows.stride + sampled_positions
        logits_index = last_T[work.samples]
        asked = self._asked_prompt(work, ends, last_T)
        hidden_index = asked[2] if asked else self._arange[:0]
        target_places = flat[hidden_index] + 1

        positions_T, flat_T, logits_R, store_R, hidden_P, targets_P = self._staging.upload(
            positions, flat, logits_index, store, hidden_index, target_places
        )
        token_ids_T = torch.index_select(rows.flat_token_ids, 0, flat_T, out=self._token_ids[: len(flat)])
        prompt = None
        if asked:
            num_top = rows.prompt_top_tokens[work.rows[asked[0]]]
            targets = rows.flat_token_ids.index_select(0, targets_P)
            prompt = PromptInputs(asked[0], asked[1], num_top, hidden_P, targets)
        return StepInputs(
            batch=Batch(
                rows=work.rows,
                starts=work.starts,
                counts=work.counts,
                num_prompt_tokens=rows.num_prompt_tokens[work.rows],
                page_table=rows.page_table,
                page_table_host=rows.page_table_host,
                lengths=rows.lengths[work.rows],
            ),
            token_ids=token_ids_T,
            positions=positions_T,
            sampled_rows=sampled_rows,
            sampled_positions=sampled_positions,
            logits_index=logits_R if len(logits_index) else None,
            samples_all=len(logits_index) == len(flat),
            store_index=store_R if len(store) else None,
            prompt=prompt,
        )

    def _lay_out(self, work: Work) -> tuple[Column, Column, Column]:
        """Per entry the place of its last token; per token its row and its position."""
        num_entries = len(work.rows)
        num_tokens = int(work.counts.sum())
        if num_tokens == num_entries:  # one token each: the steady state of decoding
            return self._arange[:num_entries], work.rows, work.starts
        after = np.cumsum(work.counts)
        first = after - work.counts
        positions = self._arange[:num_tokens] + np.repeat(work.starts - first, work.counts)
        return after - 1, np.repeat(work.rows, work.counts), positions

    def _asked_prompt(self, work: Work, ends: Column, last_T: Column) -> tuple[Column, Column, Column] | None:
        """Entries that owe prompt logprobs, how many each, and the places of those positions among the T tokens.

        The token at position p gives the logprob of the prompt token at p + 1, so p runs from `start` and ends before
        the last prompt token and the last computed one.
        """
        asking = self._rows.prompt_logprobs[work.rows]
        if not asking.any():
            return None
        known = np.minimum(ends, self._rows.num_prompt_tokens[work.rows] - 1) - work.starts
        entries = np.flatnonzero(asking & (known > 0))
        if not len(entries):
            return None
        counts = known[entries]
        first_T = (last_T - work.counts + 1)[entries]
        before = np.cumsum(counts) - counts
        return entries, counts, np.arange(counts.sum()) + np.repeat(first_T - before, counts)
