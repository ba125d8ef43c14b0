"""Which implementation each operator of a model gets: chosen once, when the model is built.

Native operators are this CPU's kernels. With them the residual stream is float32 whatever the weights are: linear
layers add up in float32 and write it, norms read it and write what the next linear layer takes. Where a kernel does not
support a shape, torch computes that one operator, with the same dtypes around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from millrace_worker.attention.absent import NoAttention
from millrace_worker.attention.interface import AttentionBackend, Heads, PagedLayer
from millrace_worker.attention.latent_backend import LatentBackend, LatentHeads
from millrace_worker.attention.native_backend import QKV_DTYPE, ROTARY_DTYPE, NativeBackend
from millrace_worker.attention.torch_backend import TorchBackend
from millrace_worker.layers.embedding import Embed, Embedding, PackedEmbedding, TableSlice
from millrace_worker.layers.experts import ExpertKind, Experts, ExpertWeights, LoopedExperts, NativeExperts, NativeLayer
from millrace_worker.layers.linear import (
    Epilogue,
    Linear,
    NativeLinear,
    PlainLinear,
    make_linear,
    num_columns,
)
from millrace_worker.layers.norm import LayerNorm, NativeNorm, Norm, NormWeights, RmsNorm
from millrace_worker.layers.quantized import (
    DequantizedLinear,
    Matrix,
    NativeQuantizedLinear,
    QuantizedWeight,
    Quantizer,
    ReorderedLinear,
)
from millrace_worker.workspace import Role, Workspaces

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine

# A tied table of at most this size is packed for the head beside the plain one of the embedding: both are read in every
# step, each in its own way. A larger one is kept once: packed where rows can be read from that, else plain.
MAX_TIED_COPY_BYTES = 64 << 20

# Latents before their norm, the residual stream, what both of a block's sides hand to it, and the head to the sampler.
FLOAT32_ROLES = (
    Role.LATENT,
    Role.STREAM,
    Role.ATTENTION_DELTA,
    Role.MLP_DELTA,
    Role.DELTA_NORMED,
    Role.ROUTER,
    Role.RECURRENT_IN,
    Role.SELECTED,
    Role.STEPS,
    Role.LOGITS,
)

# Of these, those that stay the kernels' where another library multiplies, which would round them: they decide about
# experts and tokens, or are summed up over a whole text.
UNROUNDED_ROLES = (Role.LATENT, Role.ROUTER, Role.RECURRENT_IN, Role.SELECTED, Role.STEPS, Role.LOGITS)


class Operators(Protocol):
    """`role` says what the result is for: its dtype, and where it may lie."""

    stream_dtype: torch.dtype  # of the residual stream
    qkv_dtype: torch.dtype  # of what attention takes
    rotary_dtype: torch.dtype  # of cosines and sines
    backend: AttentionBackend

    def norm(self, weights: NormWeights, role: Role) -> Norm: ...

    def linear(self, weight: Matrix, bias: Tensor | None, role: Role, epilogue: Epilogue | None = None) -> Linear:
        """Holds what it needs: drop `weight`."""
        ...

    def quantized(
        self, weight: QuantizedWeight, bias: Tensor | None, role: Role, epilogue: Epilogue | None = None
    ) -> Linear:
        """As `linear`."""
        ...

    def experts(self, kind: ExpertKind, weights: Iterable[ExpertWeights[Matrix]]) -> Experts:
        """Takes the experts one after the other."""
        ...

    def embedding(self, table: Tensor, part: TableSlice) -> Embed: ...

    def tied(self, table: Tensor, part: TableSlice) -> tuple[Embed, Linear]:
        """Embedding and output head of one table."""
        ...


class TorchOperators:
    """Everything in the weights' dtype, on any device."""

    def __init__(
        self,
        layers: Sequence[PagedLayer],
        dtype: torch.dtype,
        device: torch.device,
        quantizer: Quantizer | None = None,
    ) -> None:
        self._quantizer = quantizer
        self.stream_dtype = self.qkv_dtype = self.rotary_dtype = dtype
        self.backend: AttentionBackend = torch_backend(layers, dtype, device)

    def norm(self, weights: NormWeights, role: Role) -> Norm:
        if weights.rms:
            return RmsNorm(weights.weight, weights.eps)
        return LayerNorm(weights.weight.to(self.stream_dtype), weights.bias, weights.eps)

    def linear(self, weight: Matrix, bias: Tensor | None, role: Role, epilogue: Epilogue | None = None) -> Linear:
        if isinstance(weight, QuantizedWeight):
            return self.quantized(weight, bias, role, epilogue)
        if self._quantizer is not None and self._quantizer.takes(role):
            return self.quantized(self._quantizer.quantized(weight, role), bias, role, epilogue)
        return make_linear(weight, bias, epilogue)

    def quantized(
        self, weight: QuantizedWeight, bias: Tensor | None, role: Role, epilogue: Epilogue | None = None
    ) -> Linear:
        return DequantizedLinear(weight, bias, self.stream_dtype, epilogue)

    def experts(self, kind: ExpertKind, weights: Iterable[ExpertWeights[Matrix]]) -> Experts:
        return LoopedExperts(kind, [expert_linears(self.linear, kind, each) for each in weights], self.stream_dtype)

    def embedding(self, table: Tensor, part: TableSlice) -> Embed:
        return Embedding(table, part)

    def tied(self, table: Tensor, part: TableSlice) -> tuple[Embed, Linear]:
        head = PlainLinear(table, None) if table.nbytes > MAX_TIED_COPY_BYTES else make_linear(table)
        return Embedding(table, part), head


class NativeOperators:
    """The kernels of one CPU, for float32 and bfloat16 weights."""

    stream_dtype = torch.float32

    def __init__(
        self,
        machine: Machine,
        layers: Sequence[PagedLayer],
        dtype: torch.dtype,
        quantizer: Quantizer | None = None,
    ) -> None:
        self._machine, self._dtype, self._quantizer = machine, dtype, quantizer
        self._workspaces = Workspaces()
        self.qkv_dtype = self.rotary_dtype = dtype
        self.backend: AttentionBackend
        plain = [each for each in layers if isinstance(each, Heads)]
        if layers and len(plain) == len(layers) and NativeBackend.supports(plain, dtype):
            self.qkv_dtype, self.rotary_dtype = QKV_DTYPE, ROTARY_DTYPE
            self.backend = NativeBackend(machine, plain, dtype, self._workspaces)
        else:
            self.backend = torch_backend(layers, dtype, torch.device("cpu"))

    @staticmethod
    def supports(dtype: torch.dtype, device: torch.device) -> bool:
        return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)

    def norm(self, weights: NormWeights, role: Role) -> Norm:
        dtype = self._dtype_of(role)
        if NativeNorm.supports(weights):
            out = self._workspaces.take(role, len(weights.weight), dtype)
            return NativeNorm(self._machine, weights, out)
        weight, bias = weights.weight.float(), None if weights.bias is None else weights.bias.float()
        if weights.rms:
            return RmsNorm(weight, weights.eps, dtype)
        return LayerNorm(weight, bias, weights.eps, dtype)

    def linear(self, weight: Matrix, bias: Tensor | None, role: Role, epilogue: Epilogue | None = None) -> Linear:
        if isinstance(weight, QuantizedWeight):
            return self.quantized(weight, bias, role, epilogue)
        if self._quantizer is not None and self._quantizer.takes(role):
            return self.quantized(self._quantizer.quantized(weight, role), bias, role, epilogue)
        fits = NativeLinear.supports if role in UNROUNDED_ROLES else partial(NativeLinear.suits, self._machine)
        if not fits(weight, epilogue):
            return self._cast(make_linear(weight, bias, epilogue), role)
        return self._native(weight, bias, role, epilogue)

    def _native(self, weight: Tensor, bias: Tensor | None, role: Role, epilogue: Epilogue | None) -> Linear:
        out = self._workspaces.take(role, num_columns(weight, epilogue), self._dtype_of(role))
        return NativeLinear(self._machine, weight, bias, out, epilogue)

    def quantized(
        self, weight: QuantizedWeight, bias: Tensor | None, role: Role, epilogue: Epilogue | None = None
    ) -> Linear:
        dtype = self._dtype_of(role)
        if weight.order is not None:
            in_order = self.quantized(replace(weight, order=None), bias, role, epilogue)
            return ReorderedLinear(in_order, weight.order)
        if not NativeQuantizedLinear.supports(weight, self._dtype, epilogue):
            return DequantizedLinear(weight, bias, dtype, epilogue)
        columns = weight.outputs // 2 if epilogue is not None and epilogue.gated else weight.outputs
        out = self._workspaces.take(role, columns, dtype)
        return NativeQuantizedLinear(self._machine, weight, bias, out, epilogue, dtype=self._dtype)

    def experts(self, kind: ExpertKind, weights: Iterable[ExpertWeights[Matrix]]) -> Experts:
        experts = [expert_linears(self._of_expert, kind, each) for each in weights]
        native = [(up, down) for up, down in experts if isinstance(up, NativeLayer) and isinstance(down, NativeLayer)]
        if len(native) < len(experts):
            return LoopedExperts(kind, experts, self.stream_dtype)
        return NativeExperts(self._machine, kind, native, self._workspaces)

    def _of_expert(self, weight: Matrix, bias: Tensor | None, role: Role, epilogue: Epilogue | None = None) -> Linear:
        """As `linear`, but by the kernels wherever they can: they take all experts in one call, whoever is faster at a
        single product."""
        if isinstance(weight, Tensor) and self._quantizer is None and NativeLinear.supports(weight, epilogue):
            return self._native(weight, bias, role, epilogue)
        return self.linear(weight, bias, role, epilogue)

    def embedding(self, table: Tensor, part: TableSlice) -> Embed:
        return Embedding(table, part, self.stream_dtype)

    def tied(self, table: Tensor, part: TableSlice) -> tuple[Embed, Linear]:
        if table.nbytes <= MAX_TIED_COPY_BYTES:
            return self.embedding(table, part), self.linear(table, None, Role.LOGITS)
        if not NativeLinear.supports(table):
            return self.embedding(table, part), self._cast(PlainLinear(table, None), Role.LOGITS)
        out = self._workspaces.take(Role.LOGITS, len(table), self._dtype_of(Role.LOGITS))
        head = NativeLinear(self._machine, table, None, out)
        return PackedEmbedding(head, part, self._dtype), head

    def _cast(self, linear: Linear, role: Role) -> Linear:
        dtype = self._dtype_of(role)
        return linear if dtype is self._dtype else CastLinear(linear, dtype)

    def _dtype_of(self, role: Role) -> torch.dtype:
        if role is Role.QKV:
            return self.qkv_dtype
        return torch.float32 if role in FLOAT32_ROLES else self._dtype


class CastLinear:
    """A linear layer of torch whose result is wanted in another dtype than it computes in."""

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        self._linear, self._dtype, self.name = linear, dtype, linear.name

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x).to(self._dtype)


class MakeLinear(Protocol):
    def __call__(self, weight: Matrix, bias: Tensor | None, role: Role, epilogue: Epilogue | None = None) -> Linear: ...


def expert_linears(make: MakeLinear, kind: ExpertKind, weights: ExpertWeights[Matrix]) -> tuple[Linear, Linear]:
    """What an expert goes up and down by."""
    up = make(weights.up, weights.up_bias, Role.UP, kind.epilogue)
    return up, make(weights.down, weights.down_bias, Role.MLP_DELTA)


def torch_backend(layers: Sequence[PagedLayer], dtype: torch.dtype, device: torch.device) -> AttentionBackend:
    """The one for the layers' kind of attention. Raises ValueError when they are of several."""
    if not layers:
        return NoAttention()
    latent = {isinstance(each, LatentHeads) for each in layers}
    if len(latent) != 1:
        raise ValueError("layers with and without latents in one model are not implemented")
    return (LatentBackend if latent.pop() else TorchBackend)(layers, dtype, device)


def choose_operators(
    machine: Machine | None,
    layers: Sequence[PagedLayer],
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None = None,
) -> Operators:
    """Native ones where there are kernels (`cpu_kernels.find`) and they compute `dtype`; else torch's. `quantizer`: of
    the weights that linear layers are made of."""
    if machine is not None and NativeOperators.supports(dtype, device):
        return NativeOperators(machine, layers, dtype, quantizer)
    return TorchOperators(layers, dtype, device, quantizer)
