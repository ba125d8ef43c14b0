"""What the families share: fields of a configuration turned into kinds of the spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from millrace_worker.models.architectures import positions
from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError
from millrace_worker.models.names import Names
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.spec import (
    Activation,
    Alibi,
    Attention,
    Decoder,
    Layer,
    LayerNorm,
    Mlp,
    RmsNorm,
    Rotary,
)

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# In a checkpoint of a model that sees: what stands before the language model's names, and what is not of it.
TEXT_PREFIX = "language_model."
OTHER_PARTS = (".vision_tower.*", ".vision_model.*", ".multi_modal_projector.*")


@dataclass(frozen=True)
class Architecture:
    """`describe` reads a configuration whose absent fields have `defaults`: those of transformers for the family."""

    describe: Callable[[ModelConfig], tuple[Decoder | Recurrent, Names]]
    defaults: Mapping[str, Any]
    quantized: tuple[str, ...] = ()  # the `quant_method`s that it reads


def head_dim(c: ModelConfig) -> int:
    if c.get("head_dim"):
        return c.size("head_dim")
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if hidden % heads:
        raise ConfigError(f"config.json: `hidden_size` {hidden} does not divide by `num_attention_heads` {heads}")
    return hidden // heads


def rotary(
    c: ModelConfig, layer_type: str | None = None, *, dim: int | None = None, interleaved: bool = False
) -> Rotary:
    """The positions of layers of `layer_type`, of `dim` dimensions instead of a head's; raises ConfigError."""
    return replace(positions.rotary(c, dim or head_dim(c), layer_type), interleaved=interleaved)


def attention(c: ModelConfig, position: Rotary | Alibi | None, **over: Any) -> Attention:
    heads = c.size("num_attention_heads")
    kv_heads = c.get("num_key_value_heads") or heads
    common = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim(c), "position": position}
    spec = Attention(**common | over)
    _check_whole("num_key_value_heads", spec.num_kv_heads)
    if spec.window is not None:
        _check_whole("sliding_window", spec.window, ", or null for none")
    if spec.num_heads % spec.num_kv_heads:
        raise ConfigError(
            f"config.json: {spec.num_heads} attention heads do not divide by {spec.num_kv_heads} KV heads"
        )
    return spec


def _check_whole(name: str, value: object, besides: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json: `{name}` must be a positive whole number{besides}, not {value!r}")


def layer_windows(c: ModelConfig, window: int | None, implied: list[str]) -> list[int | None]:
    """Each layer's window, by `layer_types`, or by `implied` in files that are older than that field."""
    kinds = c.get("layer_types") or implied
    if len(kinds) != c.num_hidden_layers:
        raise ConfigError(
            f"config.json: `layer_types` must name a kind for each of {c.num_hidden_layers} layers: {kinds}"
        )
    if others := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise UnsupportedError(
            f"config.json: `layer_types` {', '.join(others)} are not implemented for {c.architecture} "
            "(full_attention, sliding_attention are)"
        )
    return [window if kind == "sliding_attention" else None for kind in kinds]


def every_nth(n: int, c: ModelConfig, nth: str, others: str) -> list[str]:
    """`nth` for layers n, 2 n, 3 n …, counted from 1; `others` for all others."""
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"config.json: every how manieth layer is another must be a positive whole number, not {n!r}")
    return [others if (index + 1) % n else nth for index in range(c.size("num_hidden_layers"))]


def activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise UnsupportedError(
            f"config.json: the activation {name!r} is not implemented ({', '.join(ACTIVATIONS)} are)"
        )
    return ACTIVATIONS[name]


def gated_mlp(c: ModelConfig, hf_activation: str, *, bias: bool = False) -> Mlp:
    return Mlp(size=c.size("intermediate_size"), activation=activation(hf_activation), bias=bias)


def plain_mlp(size: int, hf_activation: str, *, bias: bool = True) -> Mlp:
    _check_whole("the width of the MLP", size)
    return Mlp(size=size, activation=activation(hf_activation), gated=False, bias=bias)


def decoder(c: ModelConfig, layers: Layer | list[Layer], norm: RmsNorm | LayerNorm | None, **over: Any) -> Decoder:
    """One layer repeated, or each layer in turn."""
    every = (layers,) * c.size("num_hidden_layers") if isinstance(layers, Layer) else tuple(layers)
    common = {
        "hidden": c.size("hidden_size"),
        "vocab": c.size("vocab_size"),
        "max_positions": positions.longest(c.size("max_position_embeddings"), every),
        "layers": every,
        "final_norm": norm,
        "tied": bool(c.tie_word_embeddings),
    }
    return Decoder(**common | over)


def text_part(family: Architecture) -> Architecture:
    """The language model within a model that sees, too: its fields are in `text_config`, its tensors have a prefix."""

    def describe(c: ModelConfig) -> tuple[Decoder | Recurrent, Names]:
        spec, names = family.describe(c.part("text_config").with_defaults(family.defaults))
        return spec, replace(
            names,
            embed=TEXT_PREFIX + names.embed,
            layer=TEXT_PREFIX + names.layer,
            final_norm=TEXT_PREFIX + names.final_norm,
            head=TEXT_PREFIX + names.head,
            ignored=(*names.ignored, *OTHER_PARTS),
        )

    return Architecture(describe, {})
