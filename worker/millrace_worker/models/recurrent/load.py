"""From a configuration and a checkpoint to a recurrent model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from millrace_worker.distributed import Group
from millrace_worker.layers.linear import Linear
from millrace_worker.layers.operators import choose_operators
from millrace_worker.models.build.ends import build_ends
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.names import Names
from millrace_worker.models.recurrent.mixers import CausalConvolution, Mamba2Mixer, MambaMixer, Mixer
from millrace_worker.models.recurrent.model import RecurrentLayer, RecurrentLM
from millrace_worker.models.recurrent.spec import Convolution, Mamba, Mamba2, Recurrent
from millrace_worker.models.sharding import Piece, check_whole
from millrace_worker.models.weights import Weights
from millrace_worker.workspace import Role

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine

# What the first checkpoints call the embedding.
OLD_EMBEDDING = "backbone.embedding"


def load_recurrent(
    spec: Recurrent, names: Names, weights: Weights, group: Group, kernels: Machine | None
) -> RecurrentLM:
    """Raises ShardingError for more than one rank."""
    check_whole(weights.rank)
    if weights.checkpoint.has(f"{OLD_EMBEDDING}.weight"):
        names = replace(names, embed=OLD_EMBEDDING)
    operators = choose_operators(kernels, [], weights.dtype, weights.device)
    parts = Parts(spec.frame, names, weights, group, operators)
    ends = build_ends(parts, [])
    layers = [_layer(parts, spec, index) for index in range(spec.num_layers)]
    return RecurrentLM(spec, ends, layers, weights.device)


def _layer(parts: Parts, spec: Recurrent, index: int) -> RecurrentLayer:
    at = parts.at(index)
    inside = Inside(parts, at + "mixer.")
    mixer = _mamba(inside, spec.mixer) if isinstance(spec.mixer, Mamba) else _mamba2(inside, spec.mixer)
    return RecurrentLayer(parts.norm(spec.norm, at + parts.names.attn_norm, Role.NORMED), mixer)


@dataclass(frozen=True)
class Inside:
    """The tensors of one mixer."""

    parts: Parts
    at: str

    def linear(self, name: str, shape: tuple[int, int], role: Role, *, bias: bool = False) -> Linear:
        """`shape`: (out, in)."""
        pieces = [Piece(self.at + name, shape[0], 0, shape[0])]
        return self.parts.operators.linear(*self.parts.weights.columns(pieces, shape[1], bias=bias), role)

    def exact(self, name: str, *shape: int) -> Tensor:
        """A tensor in float32, whatever the weights' dtype is."""
        weights = self.parts.weights
        return weights.checkpoint.read(self.at + name, shape).float().to(weights.device, copy=True)

    def convolution(self, kind: Convolution, channels: int) -> CausalConvolution:
        filters = self.exact("conv1d.weight", channels, 1, kind.taps)
        bias = self.exact("conv1d.bias", channels) if kind.bias else None
        return CausalConvolution(filters[:, 0].t().contiguous(), bias, kind.activation)


def _mamba(inside: Inside, kind: Mamba) -> Mixer:
    width, channels, selected = inside.parts.spec.hidden, kind.channels, kind.step_rank + 2 * kind.state
    linear, exact = inside.linear, inside.exact
    return MambaMixer(
        kind=kind,
        project=linear("in_proj", (2 * channels, width), Role.RECURRENT_IN, bias=kind.bias),
        convolution=inside.convolution(kind.convolution, channels),
        select=linear("x_proj", (selected, channels), Role.SELECTED),
        widen=linear("dt_proj", (channels, kind.step_rank), Role.STEPS),
        step_bias=exact("dt_proj.bias", channels),
        decay=exact("A_log", channels, kind.state).exp_().neg_(),
        skip=exact("D", channels),
        out=linear("out_proj", (width, channels), Role.ATTENTION_DELTA, bias=kind.bias),
        dtype=inside.parts.weights.dtype,
    )


def _mamba2(inside: Inside, kind: Mamba2) -> Mixer:
    width, channels = inside.parts.spec.hidden, kind.channels
    convolved = channels + 2 * kind.groups * kind.state
    linear, exact = inside.linear, inside.exact
    return Mamba2Mixer(
        kind=kind,
        project=linear("in_proj", (channels + convolved + kind.heads, width), Role.RECURRENT_IN, bias=kind.bias),
        convolution=inside.convolution(kind.convolution, convolved),
        step_bias=exact("dt_bias", kind.heads),
        decay=exact("A_log", kind.heads).exp_().neg_(),
        skip=exact("D", kind.heads),
        norm_weight=exact("norm.weight", channels),
        out=linear("out_proj", (width, channels), Role.ATTENTION_DELTA, bias=kind.bias),
        dtype=inside.parts.weights.dtype,
    )
