"""The two ends of the decoder: token embedding and output head, both split by vocabulary over the ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.distributed import Group
from millrace_worker.layers.linear import Linear


class Embedding:
    """Rows `first .. first + len(weight)` of the vocabulary are here; other tokens are looked up by other ranks."""

    name = "torch"

    def __init__(
        self, weight: Tensor, first: int, group: Group, scale: float = 1.0, dtype: torch.dtype | None = None
    ) -> None:
        """`scale` is rounded to the weight's dtype, as the models that have one were trained. `dtype` is the result's;
        None: the weight's."""
        self._weight, self._first, self._group = weight, first, group
        self._dtype = dtype or weight.dtype
        self._scale = float(torch.tensor(scale, dtype=weight.dtype))

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        """[T] int64 to [T, D]; the result is the caller's to change."""
        if self._group.size == 1:
            x_TD = F.embedding(token_ids_T, self._weight)
        else:
            local = token_ids_T - self._first
            elsewhere = (local < 0) | (local >= len(self._weight))
            x_TD = F.embedding(local.masked_fill(elsewhere, 0), self._weight)
            x_TD = self._group.all_reduce(x_TD.masked_fill_(elsewhere[:, None], 0))
        x_TD = x_TD.to(self._dtype)
        return x_TD if self._scale == 1.0 else x_TD.mul_(self._scale)


class Head:
    """Hidden states to logits: this rank's part of the vocabulary, gathered on rank 0."""

    def __init__(self, linear: Linear, vocab: int, group: Group, softcap: float | None = None) -> None:
        self._linear, self._vocab, self._group, self._softcap = linear, vocab, group, softcap
        self.name = linear.name

    def __call__(self, h_RD: Tensor) -> Tensor | None:
        """float32 [R, vocab] on rank 0, None on the others. Every rank has to call it."""
        logits = self._group.gather_columns(self._linear(h_RD))
        if logits is None:
            return None
        logits = logits[:, : self._vocab].float()  # the last rank's part is padded
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap).mul_(self._softcap)
        return logits
