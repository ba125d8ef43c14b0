"""The experts of a mixture (Shazeer et al. 2017), grouped: one pass for each expert that any token has chosen.

T tokens, K experts of a token, A = T * K assignments, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from millrace_worker.layers.linear import Epilogue, Linear


class ExpertWeights(NamedTuple):
    """One expert's part on this rank: up [F or 2 F, D] (gate before up), down [D, F], and their biases."""

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True)
class ExpertKind:
    """What the experts of a layer have in common. `weigh_input`: a token's weights scale what its experts take."""

    count: int
    epilogue: Epilogue
    weigh_input: bool = False


class Experts(Protocol):
    name: str

    def __call__(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """[T, D]: the sum of what each token's experts (int64, no two alike) give, weighted (float32).

        It is added up in the order in which the token names them.
        """
        ...


class LoopedExperts:
    """Two linear layers for each expert."""

    def __init__(self, kind: ExpertKind, experts: Sequence[tuple[Linear, Linear]], dtype: torch.dtype) -> None:
        """`experts` go up and down; `dtype` is the result's."""
        self._experts, self._kind, self._dtype = experts, kind, dtype
        self.name = ", ".join(sorted({linear.name for pair in self._experts for linear in pair}))

    def __call__(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        count = experts_TK.shape[1]
        chosen_A = experts_TK.flatten()
        order_A = chosen_A.argsort(stable=True)
        sizes = chosen_A.bincount(minlength=self._kind.count).tolist()
        x_AD = x_TD.index_select(0, order_A.div(count, rounding_mode="floor"))
        if self._kind.weigh_input:
            x_AD.mul_(weights_TK.flatten()[order_A, None])
        y_AD, first = torch.empty(x_AD.shape, dtype=self._dtype, device=x_AD.device), 0
        for (up, down), size in zip(self._experts, sizes, strict=True):
            if size:
                part = slice(first, first + size)
                y_AD.index_copy_(0, order_A[part], down(up(x_AD[part])))
                first += size
        if self._kind.weigh_input:
            weights_TK = torch.ones_like(weights_TK)
        return weighted_sum(y_AD.view(len(x_TD), count, -1), weights_TK)


def weighted_sum(y_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """[T, D], one expert after the other: a token's bits do not depend on how many others there are."""
    out_TD = y_TKD[:, 0] * weights_TK[:, :1]
    for index in range(1, y_TKD.shape[1]):
        out_TD.addcmul_(y_TKD[:, index], weights_TK[:, index : index + 1])
    return out_TD.to(y_TKD.dtype)
