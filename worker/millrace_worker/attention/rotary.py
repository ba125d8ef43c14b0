"""Rotary embedding (Su et al. 2021): cosines and sines by position, rows of them gathered once per step.

A table of all positions would take a gigabyte for a million positions of 128 dimensions, and cosines for each step
anew ten times what a gather takes. So a table's rows are made in blocks, when a step first needs one, and its memory
reaches to the longest sequence so far (on CPUs to what has been made, since untouched zeros take none).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from millrace_worker.kv_pool import lazy_zeros
from millrace_worker.step import Batch

BLOCK = 1024

# Which dimensions of a head turn together, of R that do: (i, i + R / 2), or (2 i, 2 i + 1).
Pairs = Literal["halves", "neighbours"]


class Rotation(NamedTuple):
    """Cosines and sines [T, 1, R] of a step's tokens, R rotated dimensions, in the model's dtype.

    The sine carries the signs of the turn: [-sin, sin] for the two halves.
    """

    cos: Tensor
    sin: Tensor


class StepRotation(Protocol):
    """Where the rows of one step come from."""

    def rows(self, positions_T: Tensor) -> Tensor:
        """[T, 1, 2 R], contiguous: cosines and sines of each token, as `split` takes them."""
        ...

    def table(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """The same without copying them: a table [P, 2 R] and which of its rows are those of the tokens, [T] int64."""
        ...


def split(rows_T1C: Tensor) -> Rotation:
    width = rows_T1C.shape[-1] // 2
    return Rotation(rows_T1C[..., :width], rows_T1C[..., width:])


class RotaryTable:
    """Rows by position, of one set of angles. Not thread-safe."""

    def __init__(
        self,
        angles: Callable[[Tensor], Tensor],
        dim: int,
        max_positions: int,
        amplitude: float = 1.0,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`angles` makes [P, `dim` / 2] float32 of positions [P] (int64); computed in float32, kept in `dtype`."""
        self.width, self.max_positions = dim, max_positions
        self._angles, self._amplitude = angles, amplitude
        self._made = np.zeros(-(-max_positions // BLOCK), dtype=np.bool_)
        self._num_ready = 0  # every row below has been made
        self._rows = torch.empty((0, 2 * dim), dtype=dtype, device=device)

    def plan(self, batch: Batch) -> RotaryTable:
        """Makes the rows that the step needs."""
        ends = batch.starts + batch.counts
        if np.count_nonzero(ends > self._num_ready):
            self._make_blocks(batch.starts // BLOCK, (ends - 1) // BLOCK)
        return self

    def rows(self, positions_T: Tensor) -> Tensor:
        """Of positions whose step has been planned."""
        return self._rows.index_select(0, positions_T)[:, None]

    def table(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        return self._rows, positions_T

    @torch.inference_mode()
    def _make_blocks(self, firsts: np.ndarray, lasts: np.ndarray) -> None:
        self._reach((int(lasts.max()) + 1) * BLOCK)
        for first, last in set(zip(firsts.tolist(), lasts.tolist(), strict=True)):
            for block in range(first, last + 1):
                if not self._made[block]:
                    self._make(block)
        unmade = np.flatnonzero(~self._made)
        self._num_ready = int(unmade[0]) * BLOCK if len(unmade) else self.max_positions

    def _reach(self, num_rows: int) -> None:
        """Memory for so many rows, twice as many as before if it grows at all."""
        old = self._rows
        if num_rows <= len(old):
            return
        num_rows = min(max(num_rows, 2 * len(old)), len(self._made) * BLOCK)
        self._rows = lazy_zeros((num_rows, 2 * self.width), old.dtype, old.device)
        for block in np.flatnonzero(self._made).tolist():
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            self._rows[part] = old[part]

    def _make(self, block: int) -> None:
        positions = torch.arange(block * BLOCK, (block + 1) * BLOCK, device=self._rows.device)
        angles = self._angles(positions)
        cos, sin = angles.cos().mul_(self._amplitude), angles.sin().mul_(self._amplitude)
        self._rows[block * BLOCK : (block + 1) * BLOCK] = torch.cat((cos, cos, -sin, sin), dim=1)
        self._made[block] = True


class SwitchedRotaryTable:
    """Two tables: a sequence of more than `switch` tokens takes its rows from the second one, at all its positions."""

    def __init__(self, short: RotaryTable, long: RotaryTable, switch: int) -> None:
        self.switch, self.width = switch, short.width
        self._short, self._long = short, long

    def plan(self, batch: Batch) -> StepRotation:
        """Asks how many tokens are known of each sequence, those that this step does not compute included."""
        is_long = batch.known() > self.switch
        if is_long.all():
            return self._long.plan(batch)
        if not is_long.any():
            return self._short.plan(batch)
        self._short.plan(batch.select(~is_long))
        self._long.plan(batch.select(is_long))
        is_long_T = torch.from_numpy(np.repeat(is_long, batch.counts)).to(batch.page_table.device)
        return MixedRotation(self._short, self._long, is_long_T)


@dataclass(frozen=True)
class MixedRotation:
    """Tokens of shorter and of longer sequences in one step."""

    short: RotaryTable
    long: RotaryTable
    longer: Tensor  # bool [T]

    def rows(self, positions_T: Tensor) -> Tensor:
        nothing = torch.zeros_like(positions_T)
        short = self.short.rows(positions_T.where(~self.longer, nothing))
        long = self.long.rows(positions_T.where(self.longer, nothing))
        return torch.where(self.longer[:, None, None], long, short)

    def table(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows(positions_T)[:, 0], torch.arange(len(positions_T))


def rotate_(x_TNH: Tensor, rotation: Rotation, pairs: Pairs = "halves") -> None:
    """Turns the leading R dimensions of every head, in place, each pair by its angle."""
    cos, sin = rotation
    turning = x_TNH[..., : cos.shape[-1]]
    half = cos.shape[-1] // 2
    if pairs == "halves":
        swapped = turning.roll(half, -1)
        torch.addcmul(turning * cos, swapped, sin, out=turning)
        return
    first, second = turning[..., 0::2], turning[..., 1::2]
    cos, sin = cos[..., half:], sin[..., half:]
    turned = torch.addcmul(first * cos, second, sin, value=-1.0)
    torch.addcmul(second * cos, first, sin, out=second)
    first.copy_(turned)
