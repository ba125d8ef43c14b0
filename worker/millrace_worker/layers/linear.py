"""Linear layers with what follows them in the same pass (their epilogue): a bias, an activation, a gate.

On CPUs weights are kept in a packed layout, which replaces the stored one: that of this CPU's kernels, or oneDNN's own
where there are none. Elsewhere, and where oneDNN would only add overhead, the plain form runs. Which one it is, is
decided when the layer is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.workspace import FreshRows, Workspace

if TYPE_CHECKING:
    from millrace_kernels import Machine

# Up to this many float32 weights, a call of the packed form costs more than it saves (one row: 14 us against 3 to 12).
# In bfloat16 the packed form is the faster one at every size.
MAX_PLAIN_FLOAT32_WEIGHTS = 1 << 17

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square_(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
# Those that oneDNN computes with a product: its name of each, and which form of it.
PACKED_ACTIVATIONS = {
    "silu": ("swish", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}


@dataclass(frozen=True)
class ClampedGlu:
    """What joins a gate g and what it gates, u: g * sigmoid(alpha * g) * (u + 1), g and u clamped to `limit`."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class Epilogue:
    """Without a gate: activation(y). With one, y is [gate, up] side by side and becomes activation(gate) * up."""

    activation: str | ClampedGlu
    gated: bool


class Named(Protocol):
    """What says which implementation it is."""

    @property
    def name(self) -> str: ...


class Linear(Protocol):
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """epilogue(x W^T + bias) for x [T, in], W [out, in]."""
        ...


class PlainLinear:
    """One matrix product of torch."""

    name = "torch"

    def __init__(self, weight: Tensor, bias: Tensor | None, epilogue: Epilogue | None = None) -> None:
        self._weight, self._bias = weight, bias
        self._finish = finisher(epilogue)

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self._weight, self._bias)
        return y if self._finish is None else self._finish(y)


class PackedLinear:
    """oneDNN with prepacked weights; an activation runs inside it, a gate after it."""

    name = "onednn (prepacked)"

    def __init__(self, weight: Tensor, bias: Tensor | None, epilogue: Epilogue | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self._attribute, self._algorithm = "none", ""
        self._finish = None
        if epilogue is not None and (epilogue.gated or epilogue.activation not in PACKED_ACTIVATIONS):
            self._finish = finisher(epilogue)
        elif epilogue is not None:
            self._attribute, self._algorithm = PACKED_ACTIVATIONS[str(epilogue.activation)]

    def __call__(self, x: Tensor) -> Tensor:
        y = self._run(x, self._weight, self._bias, self._attribute, [], self._algorithm)
        return y if self._finish is None else self._finish(y)


class NativeLinear:
    """This CPU's kernels, for weights of float32 or bfloat16; a bias, an activation and a gate run inside them.

    A row's result does not depend on the other rows. The result is valid until `out` is used again.
    """

    def __init__(
        self,
        machine: Machine,
        weight: Tensor,
        bias: Tensor | None,
        out: Workspace | FreshRows,
        epilogue: Epilogue | None = None,
    ) -> None:
        """`weight` [out, in], one that `supports` agrees to, is copied. Sums are of float32, and so is the bias; the
        result is rounded to the dtype of `out`, which has `num_columns(weight, epilogue)` of them."""
        from millrace_kernels import Linear as Kernel

        weight = weight.contiguous()
        dtypes = (_name(weight.dtype), _name(out.dtype))
        values = None if bias is None else bias.float().tolist()
        shape = (weight.shape[0], weight.shape[1])
        self.kernel = Kernel(machine, weight.data_ptr(), shape, dtypes, values, native_epilogue(epilogue))
        self._run = self.kernel.apply
        self.dtype, self.num_inputs, self.out = weight.dtype, weight.shape[1], out
        self.name = f"native ({machine.level})"

    @staticmethod
    def suits(machine: Machine, weight: Tensor, epilogue: Epilogue | None = None) -> bool:
        """Whether they can, and nobody is known to be faster."""
        return (machine.multiplies or weight.dtype is not torch.bfloat16) and NativeLinear.supports(weight, epilogue)

    @staticmethod
    def supports(weight: Tensor, epilogue: Epilogue | None = None) -> bool:
        from millrace_kernels import Linear as Kernel

        gated = epilogue is not None and epilogue.gated
        return weight.device.type == "cpu" and Kernel.supports(
            _name(weight.dtype), (weight.shape[0], weight.shape[1]), gated
        )

    def __call__(self, x: Tensor) -> Tensor:
        number = x.shape[0]
        # The kernel sees addresses only.
        if x.dtype is not self.dtype or not x.is_contiguous() or x.numel() != number * self.num_inputs:
            raise ValueError(
                f"a linear layer of [{number}, {self.num_inputs}] {self.dtype} got {tuple(x.shape)} {x.dtype}"
            )
        y = self.out.rows(number)
        self._run(x.data_ptr(), number, self.out.address)
        return y

    def lookup(self, ids_T: Tensor, first: int, scale: float) -> Tensor:
        """float32 [T, in]: row `id - first` of the weight, times `scale`; zeros where there is no such row. `ids_T` is
        int64. The weight has no gate."""
        ids_T = ids_T.contiguous()
        if ids_T.dtype is not torch.int64 or ids_T.ndim != 1:
            raise ValueError(f"rows are looked up by [T] int64, not {tuple(ids_T.shape)} {ids_T.dtype}")
        rows = torch.empty(len(ids_T), self.num_inputs)
        self.kernel.lookup((ids_T.data_ptr(), len(ids_T)), first, scale, rows.data_ptr())
        return rows


def native_epilogue(epilogue: Epilogue | None) -> tuple[str | tuple[float, float] | None, bool]:
    """As the kernels take it."""
    if epilogue is None:
        return None, False
    form = epilogue.activation
    return (form.alpha, form.limit) if isinstance(form, ClampedGlu) else form, epilogue.gated


def num_columns(weight: Tensor, epilogue: Epilogue | None) -> int:
    """Columns of the result of a layer with this weight."""
    return len(weight) // 2 if epilogue is not None and epilogue.gated else len(weight)


def make_linear(weight: Tensor, bias: Tensor | None = None, epilogue: Epilogue | None = None) -> Linear:
    """The best form for this weight [out, in], on its device. The layer holds what it needs: drop `weight`."""
    small = weight.dtype is torch.float32 and weight.numel() <= MAX_PLAIN_FLOAT32_WEIGHTS
    if can_pack(weight) and not small:
        return PackedLinear(weight, bias, epilogue)
    return PlainLinear(weight, bias, epilogue)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN computes this dtype on this CPU."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finisher(epilogue: Epilogue | None) -> Callable[[Tensor], Tensor] | None:
    """An epilogue as operators of torch, over what the product and its bias gave."""
    if epilogue is None:
        return None
    if isinstance(epilogue.activation, ClampedGlu):
        return partial(_clamped_glu, epilogue.activation)
    activate = ACTIVATIONS[epilogue.activation]
    if not epilogue.gated:
        return activate

    def gate(y: Tensor) -> Tensor:
        gate, up = y.chunk(2, dim=-1)
        return activate(gate).mul_(up)

    return gate


def _clamped_glu(form: ClampedGlu, y: Tensor) -> Tensor:
    gate, up = y.chunk(2, dim=-1)
    gate, up = gate.clamp(max=form.limit), up.clamp(-form.limit, form.limit)
    # Not torch's sigmoid: a value's bits would depend on its place in the tensor.
    return torch.exp(gate * -form.alpha).add_(1.0).reciprocal_().mul_(gate).mul_(up.add_(1.0))
