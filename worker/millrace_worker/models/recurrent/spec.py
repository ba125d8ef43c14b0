"""What a recurrent architecture is. Pure data, as `models.spec` is for decoders with attention.

In all of them a short causal convolution comes before the recurrence, one filter per channel.
"""

from __future__ import annotations

from dataclasses import dataclass

from millrace_worker.models.spec import Activation, Decoder, RmsNorm


@dataclass(frozen=True, kw_only=True)
class Convolution:
    taps: int  # positions that a filter sees, its own included
    bias: bool
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class Mamba:
    """Selective state spaces (Gu and Dao 2023): every channel has a state of its own, with a decay per value."""

    channels: int
    state: int  # values of a channel's state
    step_rank: int  # of the projection that gives each channel its step size
    convolution: Convolution
    bias: bool  # of the projections in and out
    norm_eps: float | None = None  # steps, inputs and outputs of the state are normalized (Falcon Mamba)


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    """State space duality (Dao and Gu 2024): a head shares one decay, a group of heads what enters and leaves."""

    heads: int
    head_dim: int
    groups: int
    state: int
    convolution: Convolution
    bias: bool
    norm_eps: float  # of the gated norm before the projection out, within each group
    step_limits: tuple[float, float]

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """`num_layers` times x += mixer(norm(x)), within a decoder that has no layers of its own."""

    frame: Decoder  # the vocabulary on both sides and the last norm
    num_layers: int
    mixer: Mamba | Mamba2
    norm: RmsNorm
    float32_stream: bool  # the residual stream is float32 whatever the weights are
