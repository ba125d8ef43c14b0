"""Normalization of the last dimension. `add_norm` adds the pending update to the residual stream first."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Norm(Protocol):
    name: str

    def __call__(self, x: Tensor) -> Tensor: ...


class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), in float32, returned in the dtype of x.

    With the length |x| of a vector of D values this is x * sqrt(D) * weight / sqrt(|x|^2 + D * eps): three operator
    calls where squares and their mean take six.
    """

    name = "torch"

    def __init__(self, weight: Tensor, eps: float) -> None:
        """`weight` broadcasts to the normalized tensor; its last dimension is D."""
        width = weight.shape[-1]
        self._weight = weight.float() * width**0.5
        self._offset = torch.tensor((eps * width) ** 0.5, dtype=torch.float32, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * self._weight).div_(torch.hypot(length, self._offset)).to(x.dtype)


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016)."""

    name = "torch"

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self._shape, self._weight, self._bias, self._eps = weight.shape, weight, bias, eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._shape, self._weight, self._bias, self._eps)


def add_norm(norm: Norm, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
    """Adds `delta` to the residual stream, in place; returns the stream and its normalized form."""
    if delta is not None:
        residual.add_(delta)
    return residual, norm(residual)
