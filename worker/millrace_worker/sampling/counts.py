"""How often each row has seen each token: kept from step to step, one token added per step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.kv_pool import lazy_zeros
from millrace_worker.sampling.context import SampleContext

UNKNOWN = -1


class TokenCounts:
    """Counts float32 [max_rows, V] (exact to 2**24) of prompt and output together, and of the output alone.

    A row that goes on by one token costs one addition. Its counts are made anew when it has another sequence, or goes
    on anywhere else than where it stopped. On a CPU the memory of rows that use no penalty is never touched.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._max_rows = max_rows
        self._device = device
        self._counted = np.full(max_rows, UNKNOWN, dtype=np.int64)  # tokens of the row that are in the tables
        self._all = torch.zeros(0, 0, device=device)
        self._output = torch.zeros(0, 0, device=device)

    def forget(self, row: int) -> None:
        """The row has another sequence now."""
        self._counted[row] = UNKNOWN

    def advance(self, context: SampleContext, num_prompt_tokens: NDArray[np.int64], vocab_size: int) -> None:
        """Afterwards the tables say what stands before the context's positions in its rows."""
        if self._all.shape[1] != vocab_size:
            shape = (self._max_rows, vocab_size)
            self._all, self._output = (lazy_zeros(shape, torch.float32, self._device) for _ in range(2))
            self._counted[:] = UNKNOWN
        missing = context.positions - self._counted[context.rows]
        if (missing == 1).all():
            self._add_last(context, num_prompt_tokens)
        elif missing.any():
            stale = np.flatnonzero(missing)
            self._recount(context.select(stale), num_prompt_tokens[stale])
        self._counted[context.rows] = context.positions

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the tables, contiguous."""
        return self._all.data_ptr(), self._output.data_ptr()

    def gather(self, rows: Tensor, out_all_SV: Tensor, out_output_SV: Tensor) -> None:
        """The tables' rows, named on the device."""
        torch.index_select(self._all, 0, rows, out=out_all_SV)
        torch.index_select(self._output, 0, rows, out=out_output_SV)

    def _add_last(self, context: SampleContext, num_prompt_tokens: NDArray[np.int64]) -> None:
        places = context.upload(context.rows * self._all.shape[1]) + context.previous_tokens()
        is_output = context.upload((context.positions > num_prompt_tokens).astype(np.int64)).float()
        self._all.view(-1).index_add_(0, places, torch.ones_like(is_output))
        self._output.view(-1).index_add_(0, places, is_output)

    def _recount(self, context: SampleContext, num_prompt_tokens: NDArray[np.int64]) -> None:
        rows = context.upload(context.rows)
        for table, first in ((self._all, None), (self._output, num_prompt_tokens)):
            ids_RL, counted_RL = context.history(first)
            counts_RV = torch.zeros(len(rows), table.shape[1], device=ids_RL.device)
            table.index_copy_(0, rows, counts_RV.scatter_add_(1, ids_RL, counted_RL.float()))
