"""How the tokens of a step belong to rows, and the state of one layer's rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from millrace_worker.step import Batch


@dataclass(frozen=True)
class RecurrentStep:
    """Entries of one token are computed together, those of more each by themselves.

    `single_rows` [R] int64 are the rows of the former, `single_tokens` [R] their places among the step's tokens; None
    when they are all of them, in order. `chunks`: row and places of the latter. `begun`: rows whose sequence begins.
    """

    single_rows: Tensor
    single_tokens: Tensor | None
    chunks: tuple[tuple[int, slice], ...]
    begun: Tensor | None

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> RecurrentStep:
        begun = batch.rows[batch.starts == 0]
        singles = batch.counts == 1
        ends = np.cumsum(batch.counts)
        firsts = ends - batch.counts
        several = np.flatnonzero(~singles).tolist()
        return cls(
            single_rows=_on(batch.rows[singles], device),
            single_tokens=_on(firsts[singles], device) if several else None,
            chunks=tuple((int(batch.rows[i]), slice(int(firsts[i]), int(ends[i]))) for i in several),
            begun=_on(begun, device) if len(begun) else None,
        )

    def scatter(
        self,
        out_T: Tensor,
        states: Tensor,
        one: Callable[[slice | Tensor, Tensor], Tensor],
        many: Callable[[slice, Tensor], Tensor],
    ) -> Tensor:
        """Fills `out_T`: `one` computes the entries of one token and changes their rows' states, which it gets side by
        side; `many` those of a chunk and its row's state."""
        for row, tokens in self.chunks:
            out_T[tokens] = many(tokens, states[row])
        if len(self.single_rows):
            taken = states[self.single_rows]
            if self.single_tokens is None:
                out_T = one(slice(None), taken)
            else:
                out_T[self.single_tokens] = one(self.single_tokens, taken)
            states[self.single_rows] = taken
        return out_T


def _on(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)


@dataclass(frozen=True)
class RowStates:
    """Of one layer, float32: `tails` [rows, taps - 1, channels], the last inputs of the convolution, and `states`
    [rows, …] of the recurrence. What a row holds that nobody uses is never read."""

    tails: Tensor
    states: Tensor

    def begin(self, rows: Tensor) -> None:
        self.tails.index_fill_(0, rows, 0)
        self.states.index_fill_(0, rows, 0)
