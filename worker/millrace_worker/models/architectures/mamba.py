"""Mamba, Falcon Mamba, Mamba 2: recurrent layers instead of attention."""

from __future__ import annotations

import math

from millrace_worker.models.architectures.vocabulary import Architecture, activation
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.recurrent.spec import Convolution, Mamba, Mamba2, Recurrent
from millrace_worker.models.spec import Decoder, RmsNorm

NAMES = Names(
    embed="backbone.embeddings",
    layer="backbone.layers.{}",
    final_norm="backbone.norm_f",
    attn_norm="norm",
    qkv="mixer.in_proj",
    out="mixer.out_proj",
    up="",
    down="",
    optional_prefix="backbone.",
)

# There are no positions that could end. This bounds what one row of token ids may hold.
MAX_POSITIONS = 1 << 20

COMMON = {
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "residual_in_fp32": True,
}
DEFAULTS = COMMON | {"state_size": 16, "time_step_rank": "auto", "tie_word_embeddings": True}
FALCON_DEFAULTS = DEFAULTS | {"mixer_rms_eps": 1e-6}
DEFAULTS2 = COMMON | {
    "state_size": 128,
    "n_groups": 8,
    "time_step_limit": (0.0, math.inf),
    "tie_word_embeddings": False,
}


def recurrent(c: ModelConfig, mixer: Mamba | Mamba2) -> tuple[Recurrent, Names]:
    norm = RmsNorm(eps=c.layer_norm_epsilon)
    frame = Decoder(
        hidden=c.size("hidden_size"),
        vocab=c.size("vocab_size"),
        max_positions=MAX_POSITIONS,
        layers=(),
        final_norm=norm,
        tied=bool(c.tie_word_embeddings),
    )
    layers = c.size("num_hidden_layers")
    return Recurrent(
        frame=frame, num_layers=layers, mixer=mixer, norm=norm, float32_stream=bool(c.residual_in_fp32)
    ), NAMES


def convolution(c: ModelConfig) -> Convolution:
    return Convolution(taps=c.size("conv_kernel"), bias=c.use_conv_bias, activation=activation(c.hidden_act))


def mamba(c: ModelConfig) -> tuple[Recurrent, Names]:
    rank = math.ceil(c.size("hidden_size") / 16) if c.time_step_rank == "auto" else c.size("time_step_rank")
    mixer = Mamba(
        channels=int(c.expand * c.size("hidden_size")),
        state=c.size("state_size"),
        step_rank=rank,
        convolution=convolution(c),
        bias=c.use_bias,
        norm_eps=c.get("mixer_rms_eps"),
    )
    return recurrent(c, mixer)


def step_limits(stored: object) -> tuple[float, float]:
    """Two numbers; transformers 5 writes one that JSON does not have as {"__float__": "Infinity"}."""
    try:
        low, high = (each["__float__"] if isinstance(each, dict) else each for each in stored)  # pyright: ignore
        return float(low), float(high)
    except (TypeError, ValueError, KeyError):
        raise ConfigError(f"config.json: `time_step_limit` must be two numbers, not {stored!r}") from None


def mamba2(c: ModelConfig) -> tuple[Recurrent, Names]:
    heads, head_dim, groups = c.size("num_heads"), c.size("head_dim"), c.size("n_groups")
    if heads * head_dim != c.expand * c.hidden_size:
        raise ConfigError(
            f"config.json: {heads} heads of {head_dim} are not `expand` {c.expand} times `hidden_size` {c.hidden_size}"
        )
    if heads % groups:
        raise ConfigError(f"config.json: `num_heads` {heads} does not divide by `n_groups` {groups}")
    mixer = Mamba2(
        heads=heads,
        head_dim=head_dim,
        groups=groups,
        state=c.size("state_size"),
        convolution=convolution(c),
        bias=c.use_bias,
        norm_eps=c.layer_norm_epsilon,
        step_limits=step_limits(c.time_step_limit),
    )
    return recurrent(c, mixer)


MAMBA = Architecture(mamba, DEFAULTS)
FALCON_MAMBA = Architecture(mamba, FALCON_DEFAULTS)
MAMBA2 = Architecture(mamba2, DEFAULTS2)
