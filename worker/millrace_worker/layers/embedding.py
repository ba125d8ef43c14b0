"""The two ends of the decoder: token embedding and output head, both split by vocabulary over the ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.distributed import Group
from millrace_worker.layers.linear import Linear, NativeLinear


@dataclass(frozen=True)
class TableSlice:
    """Rows `first ..` of the vocabulary are on this rank; other tokens are looked up by the other ranks of `group`."""

    first: int = 0
    group: Group = field(default_factory=Group)
    scale: float = 1.0  # rounded to the weight's dtype, as the models that have one were trained

    def scale_in(self, dtype: torch.dtype) -> float:
        return float(torch.tensor(self.scale, dtype=dtype))


class Embed(Protocol):
    name: str

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        """[T] int64 to [T, D]; the result is the caller's to change."""
        ...


class Embedding:
    """Rows of a table of torch."""

    name = "torch"

    def __init__(self, weight: Tensor, part: TableSlice, dtype: torch.dtype | None = None) -> None:
        """`dtype` is the result's; None: the weight's."""
        self.weight, self._part = weight, part
        self.dtype = dtype or weight.dtype
        self.scale = part.scale_in(weight.dtype)

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        part = self._part
        if part.group.size == 1:
            x_TD = F.embedding(token_ids_T, self.weight)
        else:
            local = token_ids_T - part.first
            elsewhere = (local < 0) | (local >= len(self.weight))
            x_TD = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
            x_TD = part.group.all_reduce(x_TD.masked_fill_(elsewhere[:, None], 0))
        x_TD = x_TD.to(self.dtype)
        return x_TD if self.scale == 1.0 else x_TD.mul_(self.scale)


class PackedEmbedding:
    """float32 rows of a table that a native output head has packed for itself: it is kept once."""

    def __init__(self, head: NativeLinear, part: TableSlice, dtype: torch.dtype) -> None:
        """`dtype` is the table's."""
        self.head, self.part, self.name = head, part, head.name
        self.scale = part.scale_in(dtype)

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        return self.part.group.all_reduce(self.head.lookup(token_ids_T, self.part.first, self.scale))


class Head:
    """Hidden states to logits: this rank's part of the vocabulary, gathered on rank 0."""

    def __init__(
        self, linear: Linear, vocab: int, group: Group, *, scale: float = 1.0, softcap: float | None = None
    ) -> None:
        """Logits are multiplied by `scale`, then kept within `softcap`."""
        self._linear, self._vocab, self._group = linear, vocab, group
        self._scale, self._softcap = scale, softcap
        self.name = linear.name

    def __call__(self, h_RD: Tensor) -> Tensor | None:
        """float32 [R, vocab] on rank 0, None on the others. Every rank has to call it."""
        logits = self._group.gather_columns(self._linear(h_RD))
        if logits is None:
            return None
        if logits.shape[1] != self._vocab:  # the last rank's part is padded
            logits = logits[:, : self._vocab]
        logits = logits.float()
        if self._scale != 1.0:
            logits = logits.mul_(self._scale)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap).mul_(self._softcap)
        return logits
