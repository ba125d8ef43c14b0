"""The experts of a mixture (Shazeer et al. 2017), grouped: one pass for each expert that any token has chosen.

T tokens, K experts of a token, A = T * K assignments, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from millrace_worker.layers.linear import Epilogue, Linear, NativeLinear
from millrace_worker.layers.quantized import Matrix, NativeQuantizedLinear
from millrace_worker.workspace import Role, Workspaces

if TYPE_CHECKING:
    from millrace_kernels import Machine

NativeLayer = NativeLinear | NativeQuantizedLinear


Weight_co = TypeVar("Weight_co", bound=Matrix, covariant=True)


class ExpertWeights(NamedTuple, Generic[Weight_co]):
    """One expert's part on this rank: up [F or 2 F, D] (gate before up), down [D, F], and their biases."""

    up: Weight_co
    up_bias: Tensor | None
    down: Weight_co
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


class NativeExperts:
    """This CPU's kernels: all experts in one call, without a copy of a token's row in Python.

    The result is valid until the layer, or another one of the same workspaces, computes again.
    """

    def __init__(
        self,
        machine: Machine,
        kind: ExpertKind,
        experts: Sequence[tuple[NativeLayer, NativeLayer]],
        workspaces: Workspaces,
    ) -> None:
        """`experts` go up, in the dtype that they take, and down to float32; all have the same shapes."""
        from millrace_kernels import Experts as Kernel

        up, down = experts[0]
        kernel = Kernel(machine, [(each.kernel, other.kernel) for each, other in experts], kind.weigh_input)
        self._run, self._scratch_rows = kernel.apply, kernel.scratch_rows
        self._dtype, self._width = up.dtype, up.num_inputs
        self._sorted = workspaces.take(Role.SORTED, up.num_inputs, up.dtype)
        self._hidden = workspaces.take(Role.UP, down.num_inputs, down.dtype)
        self._results = workspaces.take(Role.EXPERTS, up.num_inputs, torch.float32)
        self._out = workspaces.take(Role.MIXED, up.num_inputs, torch.float32)
        self.name = up.name

    def __call__(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        number, count = experts_TK.shape
        # The kernel sees addresses only.
        if x_TD.dtype is not self._dtype or not x_TD.is_contiguous() or x_TD.shape != (number, self._width):
            raise ValueError(f"experts of [{number}, {self._width}] {self._dtype} got {tuple(x_TD.shape)} {x_TD.dtype}")
        if experts_TK.dtype is not torch.int64 or weights_TK.dtype is not torch.float32:
            raise ValueError(f"choices are int64 with float32 weights, not {experts_TK.dtype}, {weights_TK.dtype}")
        if weights_TK.shape != experts_TK.shape:
            raise ValueError(f"{tuple(experts_TK.shape)} choices have {tuple(weights_TK.shape)} weights")
        experts_TK, weights_TK = experts_TK.contiguous(), weights_TK.contiguous()
        scratch = self._scratch_rows(number, count)
        for each in (self._sorted, self._hidden, self._results):
            each.rows(scratch)
        out_TD = self._out.rows(number)
        self._run(
            (x_TD.data_ptr(), number),
            (experts_TK.data_ptr(), weights_TK.data_ptr(), count),
            (self._sorted.address, self._hidden.address, self._results.address),
            self._out.address,
        )
        return out_TD


def weighted_sum(y_TKD: Tensor, weights_TK: Tensor) -> Tensor:
    """[T, D], one expert after the other: a token's bits do not depend on how many others there are."""
    out_TD = y_TKD[:, 0] * weights_TK[:, :1]
    for index in range(1, y_TKD.shape[1]):
        out_TD.addcmul_(y_TKD[:, index], weights_TK[:, index : index + 1])
    return out_TD.to(y_TKD.dtype)
