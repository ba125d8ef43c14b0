"""A checkpoint whose matrices are float8 in blocks: what is read of them is dequantized, part by part."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from millrace_worker.models.checkpoint import FLOATS, Checkpoint
from millrace_worker.models.quantization import Fp8Blocks

FLOAT8 = torch.float8_e4m3fn
# Of the factors; a power of two may be stored as its exponent alone.
FACTORS = (*FLOATS, torch.float8_e8m0fnu)
FACTOR_ENDING = "_scale_inv"  # DeepSeek's name: the inverse of what the weights were scaled with


class Fp8Checkpoint(Checkpoint):
    """Parts of matrices in float8 are read as float32 in memory of their own, all else as it is stored."""

    def __init__(self, folder: Path, optional_prefix: str, blocks: Fp8Blocks) -> None:
        """Raises CheckpointError when the folder has no whole safetensors."""
        super().__init__(folder, optional_prefix)
        self._blocks = blocks

    def read(
        self, name: str, shape: tuple[int, ...], *parts: slice, dtypes: tuple[torch.dtype, ...] = FLOATS
    ) -> Tensor:
        """Raises CheckpointError, also of the factors of a matrix, by their name."""
        if len(shape) < 2 or self.dtype(name) is not FLOAT8:
            return super().read(name, shape, *parts, dtypes=dtypes)
        cut = zip((*parts, *(slice(None),) * (len(shape) - len(parts))), shape, strict=True)
        *before, rows, columns = (slice(*part.indices(size)) for part, size in cut)
        blocks = self._blocks
        rows_of_blocks, columns_of_blocks = blocks.touched(rows, columns)
        whole = (*shape[:-2], *blocks.count(shape[-2], shape[-1]))
        factors = super().read(name + FACTOR_ENDING, whole, *before, rows_of_blocks, columns_of_blocks, dtypes=FACTORS)
        values = super().read(name, shape, *before, rows, columns, dtypes=(FLOAT8,))
        return dequantized(values, factors, blocks, (rows.start % blocks.rows, columns.start % blocks.columns))


def dequantized(values: Tensor, factors: Tensor, blocks: Fp8Blocks, begin: tuple[int, int] = (0, 0)) -> Tensor:
    """float32, of the shape of `values` [..., rows, columns]; `factors` [..., blocks of rows, blocks of columns], the
    first of which `values` enter at its row and column `begin`.

    Only as many rows as a block has are widened at a time beside the result.
    """
    rows, columns = values.shape[-2:]
    made = torch.empty(values.shape, dtype=torch.float32)
    spread = factors.float()[..., (torch.arange(columns) + begin[1]) // blocks.columns]
    for index in range(factors.shape[-2]):
        here = slice(max(0, index * blocks.rows - begin[0]), min(rows, (index + 1) * blocks.rows - begin[0]))
        made[..., here, :] = values[..., here, :]
        made[..., here, :] *= spread[..., index, None, :]
    return made
