"""Linear layers over weights of 8 or 4 bits; what they take and give stays float32 or bfloat16.

A weight is `scale * (code - zero)`, with a scale, and a zero where codes have one, for each output and each group of
inputs. That is what checkpoints of GPTQ and AWQ (4 bits, groups of 32 to 128, a whole zero), of GGUF's Q4_0 and Q8_0
(groups of 32, no zero), and of EETQ (8 bits, one group) hold, so that each can be brought into this form without
loss. With kernels a weight is kept once, in their packed form; without, it is made float32 for each product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.distributed import Group
from millrace_worker.layers.linear import Epilogue, Linear, finisher, native_epilogue
from millrace_worker.workspace import FreshRows, Role, Workspace

if TYPE_CHECKING:
    from millrace_kernels import Machine

# What a 4-bit code of a weight without zeros stands for 0 with.
MIDDLE = 8
# The greatest code of 8 bits: as far on either side of 0.
MOST = 127
# Values of a weight that are looked at in float32 at a time.
CHUNK_VALUES = 1 << 20
INPUT_DTYPES = (torch.float32, torch.bfloat16)
# The linear layers that are quantized at load: not a mixture's router, nor the head, nor what lies around the layers.
WHOLE_ROLES = (Role.QKV, Role.LATENT, Role.LATENT_QUERY, Role.UP)
# Those of which each rank has some of the inputs.
SPLIT_ROLES = (Role.ATTENTION_DELTA, Role.MLP_DELTA)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [out, inputs]. Raises ValueError, with the numbers, where the tensors do not fit together.

    `codes`: int8 [out, inputs]; or uint8 [out, inputs / 2], rounded up: two codes of 4 bits, 0 to 15, in a byte, the
    first one in its lower half. `scales`: float32 or bfloat16 [out, groups]. `zeros`: uint8 [out, groups], the code
    that stands for 0 (0 to 16); codes of 8 bits have none, and 4-bit codes without any mean 8. `order`: int64 [inputs],
    which input each column of codes is of; without it they stand in their order. A column that only fills a group means
    0, whatever input it names.
    """

    codes: Tensor
    scales: Tensor
    inputs: int
    group: int  # inputs that share a scale; the last group may have fewer
    zeros: Tensor | None = None
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype not in (torch.int8, torch.uint8) or self.codes.ndim != 2:
            raise ValueError(f"codes are [out, in] int8 or uint8, not {tuple(self.codes.shape)} {self.codes.dtype}")
        if self.inputs < 1 or self.group < 1:
            raise ValueError(f"a weight of {self.inputs} inputs in groups of {self.group} is none")
        groups = (self.outputs, -(-self.inputs // self.group))
        columns = self.inputs if self.bits == 8 else -(-self.inputs // 2)
        if self.codes.shape[1] != columns:
            raise ValueError(
                f"{self.inputs} codes of {self.bits} bits are {columns} bytes, not {self.codes.shape[1]} of each output"
            )
        if self.scales.shape != groups or self.scales.dtype not in INPUT_DTYPES:
            raise ValueError(
                f"scales are {groups} float32 or bfloat16, not {tuple(self.scales.shape)} {self.scales.dtype}"
            )
        if self.zeros is not None and (
            self.bits == 8 or self.zeros.shape != groups or self.zeros.dtype is not torch.uint8
        ):
            raise ValueError(
                f"zeros are {groups} uint8 of 4-bit codes, not {tuple(self.zeros.shape)} {self.zeros.dtype}"
            )
        if self.order is not None and (self.order.shape != (self.inputs,) or self.order.dtype is not torch.int64):
            raise ValueError(f"an order is [{self.inputs}] int64, not {tuple(self.order.shape)} {self.order.dtype}")

    @property
    def bits(self) -> int:
        return 8 if self.codes.dtype is torch.int8 else 4

    @property
    def outputs(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    def dequantized(self) -> Tensor:
        """float32 [out, inputs]."""
        numbers = self.codes.float() if self.bits == 8 else unpacked_nibbles(self.codes)[:, : self.inputs].float()
        group_of_input = torch.arange(self.inputs, device=self.codes.device) // self.group
        if self.bits == 4:
            zeros = MIDDLE if self.zeros is None else self.zeros.float()[:, group_of_input]
            numbers -= zeros
        numbers.mul_(self.scales.float()[:, group_of_input])
        if self.order is None:
            return numbers
        return numbers.new_zeros(self.outputs, int(self.order.max()) + 1).index_add_(1, self.order, numbers)

    def rows(self, part: range) -> QuantizedWeight:
        """The outputs `part`: a rank's share of a column-parallel layer."""
        here = slice(part.start, part.stop)
        zeros = None if self.zeros is None else self.zeros[here]
        return QuantizedWeight(self.codes[here], self.scales[here], self.inputs, self.group, zeros, self.order)

    def columns(self, part: range) -> QuantizedWeight:
        """The inputs `part`: a rank's share of a row-parallel layer. Raises ValueError where that would cut a group
        (groups after the cut would begin elsewhere), or take apart inputs that stand in an order of their own."""
        if self.order is not None:
            raise ValueError("inputs in an order of their own are not divided")
        if not ends_whole(part, self.inputs, self.group, self.bits):
            raise ValueError(
                f"inputs {part.start} to {part.stop} of {self.inputs} do not end where a group of {self.group} ends: "
                "choose --num-shard accordingly"
            )
        step = 1 if self.bits == 8 else 2
        codes = self.codes[:, part.start // step : -(-part.stop // step)]
        groups = (
            slice(0, 1) if self.scales.shape[1] == 1 else slice(part.start // self.group, -(-part.stop // self.group))
        )
        zeros = None if self.zeros is None else self.zeros[:, groups]
        return QuantizedWeight(codes, self.scales[:, groups], len(part), self.group, zeros)


# What linear layers are made of.
Matrix = Tensor | QuantizedWeight


def ends_whole(part: range, inputs: int, group: int, bits: int) -> bool:
    """Whether the inputs `part` begin and end where groups do (unless there is but one) and where bytes of codes do."""
    units = (1 if group >= inputs else group, 1 if bits == 8 else 2)
    return all(part.start % unit == 0 and (part.stop % unit == 0 or part.stop == inputs) for unit in units)


def joined(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The outputs of `weights`, one after the other. Raises ValueError where their inputs stand in different orders."""
    first = weights[0]
    if len(weights) == 1:
        return first
    alike = (each.order is first.order or _equal(each.order, first.order) for each in weights)
    if not all(alike):
        raise ValueError("inputs stand in different orders")
    zeros = None
    if any(each.zeros is not None for each in weights):
        zeros = torch.cat([_zeros(each) for each in weights])
    codes, scales = torch.cat([each.codes for each in weights]), torch.cat([each.scales for each in weights])
    return QuantizedWeight(codes, scales, first.inputs, first.group, zeros, first.order)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _zeros(weight: QuantizedWeight) -> Tensor:
    if weight.zeros is not None:
        return weight.zeros
    return torch.full(weight.scales.shape, MIDDLE, dtype=torch.uint8, device=weight.codes.device)


def unpacked_nibbles(codes: Tensor) -> Tensor:
    """uint8 [out, 2 * bytes], 0 to 15, of codes [out, bytes], two in a byte."""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)


def packed_nibbles(codes: Tensor) -> Tensor:
    """uint8 [out, inputs / 2] of codes [out, inputs], 0 to 15, two in a byte."""
    codes = F.pad(codes.to(torch.uint8), (0, codes.shape[1] % 2))
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def greatest(weight: Tensor) -> Tensor:
    """float32 [out]: the greatest magnitude of each output."""
    return torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).float()


def quantize(weight: Tensor, most: Tensor) -> QuantizedWeight:
    """`weight` [out, in] in 8 bits, a scale for each output. `most`: at least `greatest(weight)`, which becomes 127."""
    scales = most / MOST
    steps = torch.where(scales > 0, scales, 1.0)
    codes = torch.empty_like(weight, dtype=torch.int8)
    step = max(1, CHUNK_VALUES // weight.shape[1])
    for first in range(0, len(weight), step):
        part = slice(first, first + step)
        codes[part] = (weight[part].float() / steps[part, None]).round_().clamp_(-MOST, MOST)
    return QuantizedWeight(codes, scales[:, None].contiguous(), weight.shape[1], weight.shape[1])


class Quantizer:
    """Quantizes weights as they are loaded: 8 bits, a scale for each output, the same one whatever the number of ranks.

    Every rank has to be asked for the same weights in the same order.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    @staticmethod
    def takes(role: Role) -> bool:
        return role in WHOLE_ROLES or role in SPLIT_ROLES

    def quantized(self, weight: Tensor, role: Role) -> QuantizedWeight:
        """`weight` [out, in], this rank's part of one whose `role` is taken."""
        most = greatest(weight)
        if role in SPLIT_ROLES and self._group.size > 1:
            of_ranks = most.new_zeros(self._group.size, len(most))
            of_ranks[self._group.rank] = most
            most = self._group.all_reduce(of_ranks).amax(dim=0)
        return quantize(weight, most)


class NativeQuantizedLinear:
    """This CPU's kernels; a bias, an activation and a gate run inside them.

    A row's result does not depend on the other rows. The result is valid until `out` is used again.
    """

    def __init__(
        self,
        machine: Machine,
        weight: QuantizedWeight,
        bias: Tensor | None,
        out: Workspace | FreshRows,
        epilogue: Epilogue | None = None,
        *,
        dtype: torch.dtype,
    ) -> None:
        """`weight`, one that `supports` agrees to, is copied. The input is of `dtype`, float32 or bfloat16. Sums are of
        float32, and so is the bias; the result is rounded to the dtype of `out`."""
        from millrace_kernels import QuantizedLinear as Kernel

        tensors = (weight.codes.contiguous(), weight.scales.contiguous())
        zeros = None if weight.zeros is None else weight.zeros.contiguous()
        addresses = (tensors[0].data_ptr(), tensors[1].data_ptr(), 0 if zeros is None else zeros.data_ptr())
        dtypes = (_name(dtype), _name(weight.scales.dtype), _name(out.dtype))
        values = None if bias is None else bias.float().tolist()
        self.kernel = Kernel(machine, addresses, _form(weight), dtypes, values, native_epilogue(epilogue))
        self._run = self.kernel.apply
        self.dtype, self.num_inputs, self.out = dtype, weight.inputs, out
        self.name = f"native ({machine.level}, int{weight.bits})"

    @staticmethod
    def supports(weight: QuantizedWeight, dtype: torch.dtype, epilogue: Epilogue | None = None) -> bool:
        from millrace_kernels import QuantizedLinear as Kernel

        gated = epilogue is not None and epilogue.gated
        return weight.codes.device.type == "cpu" and dtype in INPUT_DTYPES and Kernel.supports(_form(weight), gated)

    @property
    def num_bytes(self) -> int:
        """What the packed weight and the bias take."""
        return self.kernel.num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        number = len(x)
        # The kernel sees addresses only.
        if x.dtype is not self.dtype or not x.is_contiguous() or x.numel() != number * self.num_inputs:
            raise ValueError(
                f"a linear layer of [{number}, {self.num_inputs}] {self.dtype} got {tuple(x.shape)} {x.dtype}"
            )
        y = self.out.rows(number)
        self._run(x.data_ptr(), number, self.out.address)
        return y


class ReorderedLinear:
    """A layer whose inputs stand in an order of their own."""

    def __init__(self, linear: Linear, order: Tensor) -> None:
        self._linear, self._order, self.name = linear, order, f"{linear.name}, inputs reordered"

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x.index_select(1, self._order))


class DequantizedLinear:
    """The same by operators of torch, on any device: the weight becomes float32 for each product."""

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None, dtype: torch.dtype, epilogue: Epilogue | None = None
    ) -> None:
        """The result is of `dtype`."""
        self._weight, self._dtype = weight, dtype
        self._bias = None if bias is None else bias.float()
        self._finish: Callable[[Tensor], Tensor] | None = finisher(epilogue)
        self.name = f"torch (int{weight.bits})"

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x.float(), self._weight.dequantized(), self._bias)
        return (y if self._finish is None else self._finish(y)).to(self._dtype)


def _form(weight: QuantizedWeight) -> tuple[int, int, int, int]:
    return weight.outputs, weight.inputs, min(weight.group, weight.inputs), weight.bits


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
