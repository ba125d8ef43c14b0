"""Experts as checkpoints store them: this rank's columns of each, one after the other: none is held for long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.layers.experts import ExpertWeights
from millrace_worker.layers.quantized import Matrix
from millrace_worker.models.names import FlatExperts, MoeNames, Mxfp4Experts, SplitExperts, StackedExperts
from millrace_worker.models.sharding import Piece
from millrace_worker.models.spec import Moe
from millrace_worker.models.weights import Weights

# The values of the sixteen 4-bit floats (sign, two bits of exponent, one of mantissa), and how many share a scale.
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
FP4_BLOCK = 32
BYTES = (torch.uint8,)
SCALE_BIAS = 127


def read_experts(weights: Weights, at: str, names: MoeNames, moe: Moe, hidden: int) -> Iterator[ExpertWeights[Matrix]]:
    """The experts of the layer whose tensors' names begin with `at`."""
    reader = _Reader(weights, at, moe, hidden, weights.rank.columns(moe.expert.size, "columns of each expert"))
    for expert in range(moe.num_experts):
        match names.experts:
            case SplitExperts() as split:
                yield reader.split(split, expert)
            case StackedExperts() as stacked:
                yield reader.stacked(stacked, expert)
            case FlatExperts() as flat:
                yield reader.flat(flat, expert)
            case Mxfp4Experts() as packed:
                yield reader.mxfp4(packed, expert)


@dataclass(frozen=True)
class _Reader:
    weights: Weights
    at: str
    moe: Moe
    hidden: int
    part: range  # of each expert's columns

    def split(self, names: SplitExperts, expert: int) -> ExpertWeights[Matrix]:
        size, part, bias = self.moe.expert.size, self.part, self.moe.expert.bias
        pieces = [Piece(self.at + path.format(expert), size, part.start, part.stop) for path in names.up]
        up = self.weights.columns(pieces, self.hidden, bias=bias)
        down = self.weights.rows(self.at + names.down.format(expert), (self.hidden, size), part, bias=bias)
        return ExpertWeights(*up, *down)

    def stacked(self, names: StackedExperts, expert: int) -> ExpertWeights[Tensor]:
        size, part, hidden = self.moe.expert.size, self.part, self.hidden
        columns = slice(part.start, part.stop)
        up = [
            self._matrix(names.up, (2 * size, hidden), expert, (rows, slice(None)), names.transposed)
            for rows in self._gate_and_up(names.interleaved)
        ]
        down = self._matrix(names.down, (hidden, size), expert, (slice(None), columns), names.transposed)
        return self._made(_joined(up, names.interleaved), down, self._biases(names, expert))

    def flat(self, names: FlatExperts, expert: int) -> ExpertWeights[Tensor]:
        size, part = self.moe.expert.size, self.part
        rows = slice(expert * size + part.start, expert * size + part.stop)
        gate, up, down = (
            self.weights.checkpoint.read(self.at + name, (self.moe.num_experts * size, self.hidden), rows)
            for name in (names.gate, names.up, names.down)
        )
        return self._made(torch.cat((gate, up)), down.t(), (None, None))

    def mxfp4(self, names: Mxfp4Experts, expert: int) -> ExpertWeights[Tensor]:
        size, part, hidden = self.moe.expert.size, self.part, self.hidden
        (rows,) = self._gate_and_up(interleaved=True)
        up = self._unpacked(names.up, (2 * size, hidden), expert, rows, range(hidden))
        down = self._unpacked(names.down, (hidden, size), expert, slice(None), part)
        stacked = StackedExperts(
            up=names.up,
            down=names.down,
            up_bias=f"{names.up}_bias",
            down_bias=f"{names.down}_bias",
            interleaved=True,
        )
        return self._made(_joined([up], interleaved=True), down, self._biases(stacked, expert))

    def _gate_and_up(self, interleaved: bool) -> list[slice]:
        """The rows of this rank's gate and up among the stored ones."""
        start, stop, size = self.part.start, self.part.stop, self.moe.expert.size
        if interleaved:
            return [slice(2 * start, 2 * stop)]
        return [slice(start, stop), slice(size + start, size + stop)]

    def _matrix(
        self, name: str, shape: tuple[int, int], expert: int, part: tuple[slice, slice], transposed: bool
    ) -> Tensor:
        """A part of one expert's matrix, of `shape` (out, in)."""
        read, one, count = self.weights.checkpoint.read, slice(expert, expert + 1), self.moe.num_experts
        if transposed:
            return read(self.at + name, (count, *shape[::-1]), one, *part[::-1])[0].t()
        return read(self.at + name, (count, *shape), one, *part)[0]

    def _biases(self, names: StackedExperts, expert: int) -> tuple[Tensor | None, Tensor | None]:
        if not self.moe.expert.bias:
            return None, None
        read, one, count = self.weights.checkpoint.read, slice(expert, expert + 1), self.moe.num_experts
        shape = (count, 2 * self.moe.expert.size)
        up = [read(self.at + names.up_bias, shape, one, rows)[0] for rows in self._gate_and_up(names.interleaved)]
        down = read(self.at + names.down_bias, (count, self.hidden), one)[0]
        return _joined(up, names.interleaved), down if self.weights.rank.index == 0 else None

    def _unpacked(self, name: str, shape: tuple[int, int], expert: int, rows: slice, columns: range) -> Tensor:
        """float32 [rows, columns] of one expert's matrix, of `shape` (out, in)."""
        read, one, count = self.weights.checkpoint.read, slice(expert, expert + 1), self.moe.num_experts
        first, last = columns.start // FP4_BLOCK, -(-columns.stop // FP4_BLOCK)
        stored = (count, shape[0], shape[1] // FP4_BLOCK)
        blocks = read(
            f"{self.at}{name}_blocks", (*stored, FP4_BLOCK // 2), one, rows, slice(first, last), dtypes=BYTES
        )[0]
        scales = read(f"{self.at}{name}_scales", stored, one, rows, slice(first, last), dtypes=BYTES)[0]
        begin = columns.start - first * FP4_BLOCK
        return from_mxfp4(blocks, scales)[:, begin : begin + len(columns)]

    def _made(self, up: Tensor, down: Tensor, biases: tuple[Tensor | None, Tensor | None]) -> ExpertWeights[Tensor]:
        """In the dtype and on the device of the weights."""

        def copy(stored: Tensor) -> Tensor:
            made = torch.empty(stored.shape, dtype=self.weights.dtype, device=self.weights.device)
            return made.copy_(stored)

        up_bias, down_bias = (None if each is None else copy(each) for each in biases)
        return ExpertWeights(copy(up), up_bias, copy(down), down_bias)


def _joined(parts: list[Tensor], interleaved: bool) -> Tensor:
    """The gate's rows before those of up."""
    if interleaved:
        parts = [parts[0][0::2], parts[0][1::2]]
    return torch.cat(parts)


def from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """float32 [rows, 32 B] of blocks uint8 [rows, B, 16], two values in a byte, the low half first, and the exponents
    of their scales uint8 [rows, B]."""
    values = torch.tensor(FP4)
    pairs = torch.stack((values[(blocks & 15).int()], values[(blocks >> 4).int()]), dim=-1)
    scaled = torch.ldexp(pairs.flatten(-2), scales[..., None].int() - SCALE_BIAS)
    return scaled.flatten(-2)
