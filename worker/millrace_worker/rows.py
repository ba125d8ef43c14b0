"""The rows of the batch: fixed places in preallocated tensors, one per sequence, changed in place by each plan.

A sequence keeps its row from its admission to its release. Tokens, page table and sampling parameters of all rows live
on the device; the host keeps what it needs to check a plan and to lay out a step. Nothing is filtered or concatenated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from millrace_worker.kv_pool import lazy_zeros
from millrace_worker.staging import Staging
from millrace_worker.work import PlanError, column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millrace_worker.grammar import GrammarRows, NoGrammars
    from millrace_worker.proto import worker_pb2
    from millrace_worker.sampling import SamplingRows
    from millrace_worker.work import Column, Layout, Work


class AdmissionError(ValueError):
    """A sequence that cannot be taken. Only that sequence fails."""


@dataclass(frozen=True, kw_only=True)
class RowsShape:
    """What the rows can hold, fixed by `Prepare`."""

    max_rows: int
    max_sequence_tokens: int
    page_size: int  # 0: sequences hold no pages, their state lies in their row
    num_pages: int
    vocab_size: int
    max_step_tokens: int
    max_top_n_tokens: int = 0
    prompt_logprobs: bool = False
    grammars: bool = False

    @property
    def max_pages(self) -> int:
        """Width of the page table."""
        return self.pages_of(self.max_sequence_tokens)

    @property
    def max_growth(self) -> int:
        """Most page-table entries that one plan may append: what a step's tokens can need."""
        return self.max_step_tokens // self.page_size + 2 * self.max_rows if self.page_size else 0

    def pages_of(self, num_tokens: int) -> int:
        """Pages that hold so many tokens of a sequence."""
        return -(-num_tokens // self.page_size) if self.page_size else 0


class Rows:
    """The rows' tensors and the host's knowledge about them.

    `token_ids` [max_rows, max_sequence_tokens + 1] int64 on the device: the token at position p of a row stands at
    column p; a sampled token is written there by the device itself. The last column is room for one that nobody reads.
    `page_table` [max_rows, max_pages] int32 on the device, `page_table_host` the same on the host (one memory on CPUs).
    """

    def __init__(
        self, shape: RowsShape, sampling: SamplingRows, device: torch.device, grammars: GrammarRows | NoGrammars
    ) -> None:
        self.shape = shape
        self.sampling = sampling
        self.grammars = grammars
        self.device = device
        self.stride = shape.max_sequence_tokens + 1
        self.token_ids = lazy_zeros((shape.max_rows, self.stride), torch.int64, device)
        self.flat_token_ids = self.token_ids.view(-1)
        table = lazy_zeros((shape.max_rows, shape.max_pages), torch.int32, torch.device("cpu"))
        self.page_table_host = table.numpy()
        self.page_table = table if device.type == "cpu" else table.to(device)
        self._growth = Staging(2 * shape.max_growth, device)
        self._checked: Layout | None = None
        self._forget_sequences()

    def reset(self) -> None:
        """No sequence holds a row any more."""
        held = np.flatnonzero(self._held)
        if len(held):
            self._clear(held)
        self._forget_sequences()

    def _forget_sequences(self) -> None:
        max_rows = self.shape.max_rows
        self._held = np.zeros(max_rows, dtype=np.bool_)
        self.sequences = np.zeros(max_rows, dtype=np.uint64)
        # Tokens known, those of steps in flight included; 0 of a row that nobody holds.
        self.lengths = np.zeros(max_rows, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(max_rows, dtype=np.int64)
        self.prompt_logprobs = np.zeros(max_rows, dtype=np.bool_)
        self.prompt_top_tokens = np.zeros(max_rows, dtype=np.int64)  # how many, beside each logprob of the prompt
        self.page_counts = np.zeros(max_rows, dtype=np.int64)
        self.computed = np.zeros(max_rows, dtype=np.int64)  # what a row's state is of, where there are no pages
        self.failures: dict[int, str] = {}

    def apply(self, plan: worker_pb2.StepPlan) -> None:
        """Releases, admits and grows, in that order. A sequence that cannot be taken is noted in `failures`."""
        if plan.released:
            self.release(column(plan.released))
        for admission in plan.admitted:
            self._admit(admission)
        if plan.grown.rows:
            self._grow(plan.grown)

    def release(self, rows: Column) -> None:
        """Their sequences have left; once more changes nothing."""
        self._check_range("released rows", rows, self.shape.max_rows)
        self._held[rows] = False
        self.lengths[rows] = 0
        self.prompt_logprobs[rows] = False
        self._clear(rows)
        if self.failures:
            for row in rows.tolist():
                self.failures.pop(row, None)

    def _clear(self, rows: Column) -> None:
        self.sampling.clear(rows)
        self.grammars.clear(rows)

    def _admit(self, admission: worker_pb2.Admission) -> None:
        row = admission.row
        if row >= self.shape.max_rows:
            raise PlanError(f"admission to row {row}, but there are {self.shape.max_rows} rows")
        if self._held[row]:
            raise PlanError(f"admission to row {row}, which sequence {self.sequences[row]} still holds")
        self._held[row] = True
        self.sequences[row] = admission.sequence
        try:
            self._fill(row, admission)
        except AdmissionError as error:
            self.failures[row] = str(error)

    def _fill(self, row: int, admission: worker_pb2.Admission) -> None:
        tokens = np.frombuffer(admission.token_ids, dtype="<u4").astype(np.int64)
        pages = np.frombuffer(admission.pages, dtype="<u4").astype(np.int32)
        self._check_admission(admission, tokens, pages)
        try:
            self.sampling.set(row, admission.sampling, admission.num_prompt_tokens)
        except ValueError as error:
            raise AdmissionError(f"sampling parameters: {error}") from error
        if admission.sampling.grammar:
            output = tokens[admission.num_prompt_tokens :].tolist()
            self.grammars.admit(row, admission.sampling, admission.num_prompt_tokens, output)
        self.token_ids[row, : len(tokens)] = torch.from_numpy(tokens)
        self.page_table_host[row, : len(pages)] = pages
        if self.device.type != "cpu":
            self.page_table[row, : len(pages)] = torch.from_numpy(pages)
        self.lengths[row] = len(tokens)
        self.page_counts[row] = len(pages)
        self.computed[row] = 0
        self.num_prompt_tokens[row] = admission.num_prompt_tokens
        self.prompt_logprobs[row] = admission.prompt_logprobs
        self.prompt_top_tokens[row] = admission.sampling.prompt_top_tokens

    def _check_admission(self, admission: worker_pb2.Admission, tokens: np.ndarray, pages: np.ndarray) -> None:
        shape = self.shape
        if not 1 <= len(tokens) <= shape.max_sequence_tokens:
            raise AdmissionError(f"{len(tokens)} tokens, but a row holds 1 to {shape.max_sequence_tokens}")
        if admission.num_prompt_tokens > len(tokens):
            raise AdmissionError(f"num_prompt_tokens is {admission.num_prompt_tokens} of {len(tokens)} tokens")
        if tokens.max() >= shape.vocab_size:
            raise AdmissionError(f"a token id is beyond the model's vocabulary of {shape.vocab_size}")
        if len(pages) > shape.max_pages:
            raise AdmissionError(f"{len(pages)} pages, but a sequence has at most {shape.max_pages}")
        if len(pages) and not 0 <= pages.min() <= pages.max() < shape.num_pages:
            raise AdmissionError(f"a page is beyond the pool of {shape.num_pages} pages")
        if admission.prompt_logprobs and not shape.prompt_logprobs:
            raise AdmissionError("prompt logprobs were not prepared for: ask for them in Prepare")
        for field in ("top_n_tokens", "prompt_top_tokens"):
            asked = getattr(admission.sampling, field)
            if asked > shape.max_top_n_tokens:
                raise AdmissionError(f"{field} is {asked}, but Prepare allowed {shape.max_top_n_tokens}")
        if admission.sampling.grammar and not shape.grammars:
            raise AdmissionError("grammars were not prepared for: ask for them in Prepare")

    def _grow(self, growth: worker_pb2.Growth) -> None:
        rows, indices, pages = column(growth.rows), column(growth.indices), column(growth.pages)
        if not len(rows) == len(indices) == len(pages):
            lengths = (len(rows), len(indices), len(pages))
            raise PlanError(f"growth columns rows, indices, pages have lengths {lengths}")
        if len(rows) > self.shape.max_growth:
            raise PlanError(f"{len(rows)} pages grown in one step, but its tokens need {self.shape.max_growth} at most")
        self._check_range("grown rows", rows, self.shape.max_rows)
        self._check_range("page indices", indices, self.shape.max_pages)
        self._check_range("pages", pages, self.shape.num_pages)
        self.page_table_host[rows, indices] = pages
        # Entries of one row come in ascending order, and of repeated rows numpy keeps the last: the longest.
        self.page_counts[rows] = indices + 1
        if self.device.type != "cpu":
            places, values = self._growth.upload(rows * self.shape.max_pages + indices, pages)
            self.page_table.view(-1).index_copy_(0, places, values.to(torch.int32))

    def check_work(self, work: Work) -> None:
        """Every entry must compute known tokens of a held row into pages that the row has. Raises PlanError."""
        layout = work.layout
        if not len(layout.rows):
            return
        if layout is not self._checked:
            self._check_layout(layout)
            self._checked = layout
        unknown = work.ends > self.lengths[layout.rows]
        if np.count_nonzero(unknown):  # `any` takes seven times as long
            held = self._held[layout.rows]
            if not held.all():
                raise PlanError(f"work for rows that nobody holds: {layout.rows[~held].tolist()}")
            raise PlanError(f"work beyond the known tokens of rows {layout.rows[unknown].tolist()}")
        self._check_state(work)

    def _check_layout(self, layout: Layout) -> None:
        self._check_range("work rows", layout.rows, self.shape.max_rows)
        if layout.counts.min() < 1:
            raise PlanError("a work entry computes no token: counts must be at least 1")
        if layout.num_tokens > self.shape.max_step_tokens:
            raise PlanError(f"a step of {layout.num_tokens} tokens, but Prepare allowed {self.shape.max_step_tokens}")
        if np.bincount(layout.rows).max() > 1:
            raise PlanError("a row has two work entries in one step")

    def _check_state(self, work: Work) -> None:
        """A token's K and V need a place in a page; a row's state goes on where it stands, or begins anew."""
        rows = work.layout.rows
        if self.shape.page_size:
            homeless = work.ends > self.page_counts[rows] * self.shape.page_size
            if np.count_nonzero(homeless):
                raise PlanError(f"work beyond the pages of rows {rows[homeless].tolist()}")
            return
        astray = (work.starts > 0) & (work.starts != self.computed[rows])
        if astray.any():
            raise PlanError(f"work that does not go on where the state of rows {rows[astray].tolist()} stands")

    def living(self, work: Work) -> np.ndarray | None:
        """Which entries belong to sequences that have not failed; None when all do."""
        if not self.failures:
            return None
        return ~np.isin(work.layout.rows, np.fromiter(self.failures, dtype=np.int64))

    def note_computed(self, work: Work) -> None:
        """The step will store a token at position start + count of each sampling row: later plans may use it."""
        if not self.shape.page_size:
            self.computed[work.layout.rows] = work.ends
        self.lengths[work.layout.sampled_rows] = work.sampled_positions + 1

    def fail(self, admitted: Sequence[worker_pb2.Admission], working: Column, message: str) -> None:
        """These sequences have failed: work for them is dropped, and each answer names them, until they are released.

        The admitted ones are given their rows, so that their release later finds them, however far `apply` came.
        """
        max_rows = self.shape.max_rows
        for admission in admitted:
            if admission.row < max_rows and not self._held[admission.row]:
                self._held[admission.row] = True
                self.sequences[admission.row] = admission.sequence
        for row in [admission.row for admission in admitted] + working.tolist():
            if row < max_rows and self._held[row]:
                self.failures.setdefault(row, message)

    @staticmethod
    def _check_range(name: str, values: Column, bound: int) -> None:
        if len(values) and values.max() >= bound:
            raise PlanError(f"{name}: {values.max()} is not below {bound}")
