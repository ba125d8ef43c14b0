"""A mixture of experts as a decoder layer's second block: router, experts, and those that compute every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from millrace_worker.layers.experts import Experts
from millrace_worker.layers.linear import Linear, Named

# float32 logits [T, E] to each token's experts (int64) and their weights (float32), [T, K] both.
Route = Callable[[Tensor], tuple[Tensor, Tensor]]


class Mlp(Protocol):
    @property
    def linears(self) -> tuple[Named, ...]: ...

    def __call__(self, h_TD: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class MoeLayer:
    """On several ranks each holds some columns of every expert: results are parts of a sum over the ranks."""

    router: Linear
    route: Route
    experts: Experts
    shared: Mlp | None
    shared_gate: Linear | None  # to one logit, whose sigmoid scales what `shared` gives

    def __call__(self, h_TD: Tensor) -> Tensor:
        chosen_TK, weights_TK = self.route(self.router(h_TD).float())
        out_TD = self.experts(h_TD, chosen_TK, weights_TK)
        if self.shared is None:
            return out_TD
        if self.shared_gate is None:
            return out_TD.add_(self.shared(h_TD))
        gate_T1 = sigmoid(self.shared_gate(h_TD).float())
        return out_TD.addcmul_(self.shared(h_TD), gate_T1.to(out_TD.dtype))

    @property
    def linears(self) -> tuple[Named, ...]:
        shared = () if self.shared is None else self.shared.linears
        return (self.router, self.experts, *shared)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x). torch's own rounds the last values of a tensor differently from the others: a token's experts
    would depend on its place in the batch."""
    return torch.exp(-x).add_(1.0).reciprocal_()
