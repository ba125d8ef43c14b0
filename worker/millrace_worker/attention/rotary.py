"""Rotary embedding (Su et al. 2021): a table of cosines and sines made once, rows of it gathered once per step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines [T, 1, R] of a step's tokens, R rotated dimensions, in the model's dtype.

    The sine carries the signs of the turn: [-sin, sin] for the two halves.
    """

    cos: Tensor
    sin: Tensor


class RotaryTable:
    def __init__(self, frequencies: Tensor, max_positions: int, dtype: torch.dtype) -> None:
        """`frequencies` float32 [R / 2]: radians per position of each pair of dimensions. Computed in float32."""
        positions = torch.arange(max_positions, dtype=torch.float32, device=frequencies.device)
        angles = torch.outer(positions, frequencies)
        cos, sin = angles.cos().to(dtype), angles.sin_().to(dtype)
        self.width = 2 * frequencies.numel()
        self._table = torch.cat((cos, cos, -sin, sin), dim=1)

    def gather(self, positions_T: Tensor) -> Rotation:
        rows = self._table.index_select(0, positions_T)[:, None]
        return Rotation(rows[..., : self.width], rows[..., self.width :])


def rotate_(x_TNH: Tensor, rotation: Rotation) -> None:
    """Turns the leading R dimensions of every head, in place: pair (i, i + R / 2) by its angle."""
    cos, sin = rotation
    turning = x_TNH[..., : cos.shape[-1]]
    swapped = turning.roll(cos.shape[-1] // 2, -1)
    torch.addcmul(turning * cos, swapped, sin, out=turning)
