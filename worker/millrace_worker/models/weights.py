"""From a checkpoint to the tensors of one rank: this rank's part of each weight, in its dtype, on its device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.models.checkpoint import Checkpoint
from millrace_worker.models.sharding import Piece, Rank


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Reads tensors of `checkpoint` by the names of its family, without `.weight` and `.bias`."""

    checkpoint: Checkpoint
    rank: Rank
    dtype: torch.dtype
    device: torch.device
    transposed: bool  # linears are stored as (in, out)

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

    def columns(self, pieces: Sequence[Piece], width: int, *, bias: bool) -> tuple[Tensor, Tensor | None]:
        """A column-parallel linear: the pieces' rows one after the other, [sum of rows, width], and their bias."""
        total = sum(piece.stop - piece.start for piece in pieces)
        weight, vector = self._empty(total, width), self._empty(total) if bias else None
        at = 0
        for piece in pieces:
            rows, stop = slice(piece.start, piece.stop), at + piece.stop - piece.start
            weight[at:stop].copy_(self._matrix(piece.name, (piece.rows, width), rows, slice(None)))
            if vector is not None:
                vector[at:stop].copy_(self.checkpoint.read(f"{piece.name}.bias", (piece.rows,), rows))
            at = stop
        return weight, vector

    def rows(self, path: str, shape: tuple[int, int], part: range, *, bias: bool) -> tuple[Tensor, Tensor | None]:
        """A row-parallel linear of `shape` (out, in): its columns `part`, and the bias, which only rank 0 adds."""
        weight = self._empty(shape[0], len(part))
        weight.copy_(self._matrix(path, shape, slice(None), slice(part.start, part.stop)))
        if not bias:
            return weight, None
        vector = self.vector(f"{path}.bias", shape[0])
        return weight, vector if self.rank.index == 0 else None

    def _matrix(self, path: str, shape: tuple[int, int], rows: slice, columns: slice) -> Tensor:
        """A part of a linear's weight in its (out, in) form of `shape`, however it is stored."""
        name = f"{path}.weight"
        if self.transposed:
            return self.checkpoint.read(name, shape[::-1], columns, rows).t()
        return self.checkpoint.read(name, shape, rows, columns)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)
