"""What the families share: fields of a configuration turned into kinds of the spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import (
    Activation,
    Alibi,
    Attention,
    Decoder,
    Layer,
    LayerNorm,
    LinearScaling,
    Llama3Scaling,
    Mlp,
    RmsNorm,
    Rotary,
)

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True)
class Architecture:
    """`describe` reads a configuration whose absent fields have `defaults`: those of transformers for the family."""

    describe: Callable[[ModelConfig], tuple[Decoder, Names]]
    defaults: Mapping[str, Any]


def head_dim(c: ModelConfig) -> int:
    return c.get("head_dim") or c.hidden_size // c.num_attention_heads


def rotary(c: ModelConfig) -> Rotary:
    """Raises ConfigError for a kind of scaling that is not implemented, or that lacks a parameter."""
    rope = c.rope_parameters()
    try:
        scaling = _rope_scaling(rope)
    except KeyError as missing:
        raise ConfigError(f"config.json: rope type {rope['rope_type']!r} needs the parameter {missing}") from None
    dim = int(head_dim(c) * rope["partial_rotary_factor"])
    return Rotary(theta=float(rope["rope_theta"]), dim=dim, scaling=scaling)


def _rope_scaling(rope: Mapping[str, Any]) -> LinearScaling | Llama3Scaling | None:
    match rope["rope_type"]:
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=rope["factor"])
        case "llama3":
            return Llama3Scaling(
                factor=rope["factor"],
                low_freq_factor=rope["low_freq_factor"],
                high_freq_factor=rope["high_freq_factor"],
                original_max_positions=rope["original_max_position_embeddings"],
            )
        case other:
            raise ConfigError(f"config.json: rope type {other!r} is not implemented (default, linear, llama3 are)")


def attention(c: ModelConfig, position: Rotary | Alibi | None, **over: Any) -> Attention:
    heads = c.num_attention_heads
    kv_heads = c.get("num_key_value_heads") or heads
    common = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim(c), "position": position}
    return Attention(**common | over)


def activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ConfigError(f"config.json: the activation {name!r} is not implemented ({', '.join(ACTIVATIONS)} are)")
    return ACTIVATIONS[name]


def gated_mlp(c: ModelConfig, hf_activation: str, *, bias: bool = False) -> Mlp:
    return Mlp(size=c.intermediate_size, activation=activation(hf_activation), bias=bias)


def plain_mlp(size: int, hf_activation: str, *, bias: bool = True) -> Mlp:
    return Mlp(size=size, activation=activation(hf_activation), gated=False, bias=bias)


def decoder(c: ModelConfig, layers: Layer | list[Layer], norm: RmsNorm | LayerNorm, **over: Any) -> Decoder:
    """One layer repeated, or each layer in turn."""
    every = (layers,) * c.num_hidden_layers if isinstance(layers, Layer) else tuple(layers)
    common = {
        "hidden": c.hidden_size,
        "vocab": c.vocab_size,
        "max_positions": c.max_position_embeddings,
        "layers": every,
        "final_norm": norm,
        "tied": bool(c.tie_word_embeddings),
    }
    return Decoder(**common | over)
