"""From a checkpoint to the tensors of one rank: this rank's part of each weight, in its dtype, on its device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.layers.quantized import Matrix, joined
from millrace_worker.models.checkpoint import Checkpoint, CheckpointError
from millrace_worker.models.packed import PackedReader
from millrace_worker.models.quantization import PackedCodes
from millrace_worker.models.sharding import Piece, Rank


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Reads tensors of `checkpoint` by the names of its family, without `.weight` and `.bias`."""

    checkpoint: Checkpoint
    rank: Rank
    dtype: torch.dtype
    device: torch.device
    transposed: bool  # linears are stored as (in, out)
    codes: PackedCodes | None = None  # of those that are quantized

    def vector(self, name: str, size: int) -> Tensor:
        """A whole tensor [size], for example a norm's weight; `name` is complete."""
        return self._empty(size).copy_(self.checkpoint.read(name, (size,)))

    def part(self, name: str, shape: tuple[int, ...], rows: slice) -> Tensor:
        """Some rows of a tensor of `shape`; `name` is complete."""
        return self._empty(rows.stop - rows.start, *shape[1:]).copy_(self.checkpoint.read(name, shape, rows))

    def table(self, path: str, rows: int, width: int) -> Tensor:
        """A whole embedding table [rows, width]."""
        return self._empty(rows, width).copy_(self.checkpoint.read(f"{path}.weight", (rows, width)))

    def vocabulary(self, path: str, rows: int, width: int) -> Tensor:
        """This rank's rows of a table [rows, width], every rank the same number; rows beyond the end are zero."""
        part = self.rank.padded_share(rows)
        here = slice(part.start, min(part.stop, rows))
        own = self._empty(len(part), width)
        held = max(0, here.stop - here.start)
        if held:
            own[:held].copy_(self.checkpoint.read(f"{path}.weight", (rows, width), here))
        else:
            self.checkpoint.read(f"{path}.weight", (rows, width), slice(0, 0))
        own[held:].zero_()
        return own

    def vocabulary_vector(self, name: str, size: int) -> Tensor:
        """This rank's part of a vector over the vocabulary, as `vocabulary` cuts it; `name` is complete."""
        part = self.rank.padded_share(size)
        own = self._empty(len(part)).zero_()
        here = slice(part.start, max(part.start, min(part.stop, size)))
        held = self.checkpoint.read(name, (size,), here if here.stop > here.start else slice(0, 0))
        own[: len(held)].copy_(held)
        return own

    def columns(self, pieces: Sequence[Piece], width: int, *, bias: bool) -> tuple[Matrix, Tensor | None]:
        """A column-parallel linear: the pieces' rows one after the other, [sum of rows, width], and their bias.

        Quantized layers may have one although their family has none: AutoGPTQ gives all of them one.
        """
        packed = self._packed
        quantized = [] if packed is None else [piece.name for piece in pieces if packed.has(piece.name)]
        if packed is None or not quantized:
            return self.plain_columns(pieces, width, bias=bias)
        plain = [piece.name for piece in pieces if piece.name not in quantized]
        if plain:
            raise CheckpointError(f"{quantized[0]} is quantized and {plain[0]} is not, but both are one layer here")
        found = [packed.read(each.name, (each.rows, width), each.part, range(width)) for each in pieces]
        try:
            weight = joined(found)
        except ValueError as error:
            raise CheckpointError(f"{', '.join(dict.fromkeys(quantized))}: {error} (`g_idx`)") from error
        own = bias or any(self.checkpoint.has(f"{name}.bias") for name in quantized)
        return weight, self._biases(pieces, optional=not bias) if own else None

    def plain_columns(self, pieces: Sequence[Piece], width: int, *, bias: bool) -> tuple[Tensor, Tensor | None]:
        """The same in the dtype of the weights, where the checkpoint has it quantized, too."""
        if not bias:
            for piece in pieces:
                self._check_without_bias(piece.name, piece.rows)
        weight, at = self._empty(sum(len(piece.part) for piece in pieces), width), 0
        for piece in pieces:
            stop = at + len(piece.part)
            weight[at:stop].copy_(self._matrix(piece.name, (piece.rows, width), piece.part, range(width)))
            at = stop
        return weight, self._biases(pieces) if bias else None

    def rows(self, path: str, shape: tuple[int, int], part: range, *, bias: bool) -> tuple[Matrix, Tensor | None]:
        """A row-parallel linear of `shape` (out, in): its columns `part`, and the bias, which only rank 0 adds."""
        if self._packed is None or not self._packed.has(path):
            return self.plain_rows(path, shape, part, bias=bias)
        weight = self._packed.read(path, shape, range(shape[0]), part)
        own = bias or self.checkpoint.has(f"{path}.bias")
        return weight, self._row_bias(path, shape[0]) if own else None

    def plain_rows(self, path: str, shape: tuple[int, int], part: range, *, bias: bool) -> tuple[Tensor, Tensor | None]:
        """The same in the dtype of the weights, where the checkpoint has it quantized, too."""
        if not bias:
            self._check_without_bias(path, shape[0])
        weight = self._empty(shape[0], len(part)).copy_(self._matrix(path, shape, range(shape[0]), part))
        return weight, self._row_bias(path, shape[0]) if bias else None

    def _check_without_bias(self, path: str, size: int) -> None:
        """A quantized layer that has no place for a bias may be stored with zeros, as AutoGPTQ does."""
        name = f"{path}.bias"
        if self._packed is None or not self._packed.has(path) or not self.checkpoint.has(name):
            return
        if bool(self.checkpoint.read(name, (size,)).any()):
            raise CheckpointError(f"{name}: is not zero, and there is no place for a bias in this layer")

    def _row_bias(self, path: str, size: int) -> Tensor | None:
        vector = self.vector(f"{path}.bias", size)
        return vector if self.rank.index == 0 else None

    def _biases(self, pieces: Sequence[Piece], *, optional: bool = False) -> Tensor:
        """Those of the pieces' rows, 0 where they are `optional` and there is none."""
        vector, at = self._empty(sum(len(piece.part) for piece in pieces)), 0
        for piece in pieces:
            name, stop = f"{piece.name}.bias", at + len(piece.part)
            if optional and not self.checkpoint.has(name):
                vector[at:stop].zero_()
            else:
                vector[at:stop].copy_(self.checkpoint.read(name, (piece.rows,), slice(piece.start, piece.stop)))
            at = stop
        return vector

    def _matrix(self, path: str, shape: tuple[int, int], rows: range, columns: range) -> Tensor:
        """A part of a linear's weight in its (out, in) form of `shape`, however it is stored."""
        if self._packed is not None and self._packed.has(path):
            return self._packed.read(path, shape, rows, columns).dequantized()
        name, cut = f"{path}.weight", (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        if self.transposed:
            return self.checkpoint.read(name, shape[::-1], *cut[::-1]).t()
        return self.checkpoint.read(name, shape, *cut)

    @property
    def _packed(self) -> PackedReader | None:
        return None if self.codes is None else PackedReader(self.checkpoint, self.codes)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)
