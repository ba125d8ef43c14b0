"""Rotary embedding (Su et al. 2021): a table of cosines and sines made once, rows of it gathered once per step."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Which dimensions of a head turn together, of R that do: (i, i + R / 2), or (2 i, 2 i + 1).
Pairs = Literal["halves", "neighbours"]


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
