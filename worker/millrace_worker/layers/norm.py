"""Normalization of the last dimension. `add` adds the pending update to the residual stream in the same pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.workspace import FreshRows, Workspace

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine

# Native norms compute whole vectors of this many values.
LANES = 16


@dataclass(frozen=True)
class NormWeights:
    """`rms`: RMSNorm, which has no bias; otherwise LayerNorm. `weight` and `bias` [D]."""

    rms: bool
    eps: float
    weight: Tensor
    bias: Tensor | None = None


class Norm(Protocol):
    name: str

    def __call__(self, x: Tensor) -> Tensor: ...

    def add(self, residual: Tensor, delta: Tensor | None) -> Tensor:
        """residual += delta, in place; returns the norm of the sum."""
        ...


class TorchNorm(ABC):
    """What the plain forms share."""

    name = "torch"

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    def add(self, residual: Tensor, delta: Tensor | None) -> Tensor:
        if delta is not None:
            residual.add_(delta)
        return self(residual)


class RmsNorm(TorchNorm):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), in float32.

    With the length |x| of a vector of D values this is x * sqrt(D) * weight / sqrt(|x|^2 + D * eps): three operator
    calls where squares and their mean take six.
    """

    def __init__(self, weight: Tensor, eps: float, out_dtype: torch.dtype | None = None) -> None:
        """`weight` broadcasts to the normalized tensor; its last dimension is D. `out_dtype` None: as x."""
        width = weight.shape[-1]
        self.weight, self.eps = weight.float(), eps
        self._weight = self.weight * width**0.5
        self._offset = torch.tensor((eps * width) ** 0.5, dtype=torch.float32, device=weight.device)
        self._out_dtype = out_dtype

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * self._weight).div_(torch.hypot(length, self._offset)).to(self._out_dtype or x.dtype)


class LayerNorm(TorchNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float, out_dtype: torch.dtype | None = None) -> None:
        """`weight` and `bias` have the dtype of what is normalized. `out_dtype` None: as x."""
        self._shape, self._weight, self._bias, self._eps = weight.shape, weight, bias, eps
        self._out_dtype = out_dtype

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._shape, self._weight, self._bias, self._eps).to(self._out_dtype or x.dtype)


class PassThrough(TorchNorm):
    """Where a block reads the residual stream as it is: only rounded to what linear layers take."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self._dtype)


class NativeNorm:
    """Either norm of float32 rows [T, D], D a multiple of LANES, by this CPU's kernels: one pass with the addition."""

    def __init__(self, machine: Machine, weights: NormWeights, out: Workspace | FreshRows) -> None:
        """The result has the dtype of `out` and is valid until `out` is used again."""
        from millrace_kernels import Norm as Kernel

        bias = None if weights.bias is None else weights.bias.tolist()
        kind, dtypes = "rms" if weights.rms else "layer", ("float32", str(out.dtype).removeprefix("torch."))
        self.kernel = Kernel(machine, kind, weights.eps, weights.weight.tolist(), bias, dtypes)
        self._run = self.kernel.add_norm
        self.width, self.out = len(weights.weight), out
        self.name = f"native ({machine.level})"

    @staticmethod
    def supports(weights: NormWeights) -> bool:
        return len(weights.weight) % LANES == 0

    def __call__(self, x: Tensor) -> Tensor:
        return self.add(x, None)

    def add(self, residual: Tensor, delta: Tensor | None) -> Tensor:
        number = residual.shape[0]
        address = 0
        self._check(residual, number)
        if delta is not None:
            self._check(delta, number)
            address = delta.data_ptr()
        normed = self.out.rows(number)
        self._run(residual.data_ptr(), address, self.out.address, number)
        return normed

    def _check(self, x: Tensor, number: int) -> None:
        """The kernel sees addresses only."""
        if x.dtype is not torch.float32 or not x.is_contiguous() or x.numel() != number * self.width:
            raise ValueError(f"a norm of [{number}, {self.width}] float32 got {tuple(x.shape)} {x.dtype}")
