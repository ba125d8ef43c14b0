"""Families that differ from Llama in a line or two: Ministral, SmolLM 3, Seed-OSS, ERNIE 4.5, Helium, Hunyuan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import (
    Architecture,
    attention,
    decoder,
    every_nth,
    gated_mlp,
    head_dim,
    layer_windows,
    rotary,
    text_part,
)
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.spec import Attention, Decoder, HeadNorm, Layer, QueryGrowth, RmsNorm, Rotary

HUNYUAN_NAMES = replace(llama.NAMES, q_norm="self_attn.query_layernorm", k_norm="self_attn.key_layernorm")


def llama_of(c: ModelConfig, heads: list[Attention] | Attention, *, mlp_bias: bool = False) -> Decoder:
    """Llama's decoder around attention of another kind."""
    norm, mlp = RmsNorm(eps=c.rms_norm_eps), gated_mlp(c, c.hidden_act, bias=mlp_bias)
    each = heads if isinstance(heads, list) else [heads] * c.size("num_hidden_layers")
    return decoder(c, [Layer(attention=one, mlp=mlp, norm=norm) for one in each], norm)


def ministral(c: ModelConfig) -> tuple[Decoder, Names]:
    implied = ["sliding_attention" if c.sliding_window else "full_attention"] * c.size("num_hidden_layers")
    windows = layer_windows(c, c.sliding_window, implied)
    return llama_of(c, [attention(c, rotary(c), window=window) for window in windows]), llama.NAMES


def ministral3(c: ModelConfig) -> tuple[Decoder, Names]:
    """Queries grow beyond the original context."""
    rope = c.rope_parameters()
    growth = None
    if rope.get("llama_4_scaling_beta"):
        step = rope.get("original_max_position_embeddings")
        if not isinstance(step, int) or step < 1:
            raise ConfigError(
                f"config.json: `original_max_position_embeddings` must be a positive number, not {step!r}"
            )
        growth = QueryGrowth(beta=float(rope["llama_4_scaling_beta"]), step=step)
    return llama_of(c, attention(c, rotary(c), window=c.sliding_window, query_growth=growth)), llama.NAMES


def smollm3(c: ModelConfig) -> tuple[Decoder, Names]:
    """Every fourth layer knows no positions."""
    implied = every_nth(c.no_rope_layer_interval, c, "", "rotates")
    rotates = c.no_rope_layers or [int(bool(each)) for each in implied]
    if len(rotates) < c.size("num_hidden_layers"):
        raise ConfigError(f"config.json: `no_rope_layers` has {len(rotates)} of {c.num_hidden_layers} layers")
    window = c.sliding_window if c.use_sliding_window else None
    implied = ["full_attention" if turns or window is None else "sliding_attention" for turns in rotates]
    windows = layer_windows(c, window, implied[: c.num_hidden_layers])
    bias = {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    heads = [
        attention(c, rotary(c) if turns else None, window=window, **bias)
        for turns, window in zip(rotates, windows, strict=False)
    ]
    return llama_of(c, heads, mlp_bias=c.mlp_bias), llama.NAMES


def seed_oss(c: ModelConfig) -> tuple[Decoder, Names]:
    heads = attention(c, rotary(c), qkv_bias=c.attention_bias, out_bias=c.attention_out_bias)
    return llama_of(c, heads, mlp_bias=c.mlp_bias), llama.NAMES


def ernie(c: ModelConfig) -> tuple[Decoder, Names]:
    heads = attention(c, rotary(c, interleaved=True), qkv_bias=c.use_bias, out_bias=c.use_bias)
    return llama_of(c, heads, mlp_bias=c.use_bias), llama.NAMES


def helium(c: ModelConfig) -> tuple[Decoder, Names]:
    heads = attention(c, rotary(c, interleaved=True), qkv_bias=c.attention_bias)
    return llama_of(c, heads, mlp_bias=c.mlp_bias), llama.NAMES


def hunyuan(c: ModelConfig) -> tuple[Decoder, Names]:
    """Heads of q and k are normalized after they have been rotated."""
    norm = HeadNorm(norm=RmsNorm(eps=c.rms_norm_eps), after_rotation=True)
    heads = attention(c, _hunyuan_rotary(c), qk_norm=norm, qkv_bias=c.attention_bias, out_bias=c.attention_bias)
    return llama_of(c, heads), HUNYUAN_NAMES


def _hunyuan_rotary(c: ModelConfig) -> Rotary:
    """What the files call "dynamic" and give an `alpha` is one base for all lengths."""
    rope = c.rope_parameters()
    if rope["rope_type"] != "dynamic" or not rope.get("alpha"):
        return rotary(c)
    dim = head_dim(c)
    return Rotary(theta=rope["rope_theta"] * rope["alpha"] ** (dim / (dim - 2)), dim=dim)


def mistral3_vision(c: ModelConfig) -> tuple[Decoder | Recurrent, Names]:
    """The language model of one that sees is a Mistral or a Ministral 3."""
    text = c.part("text_config").get("model_type")
    return (MINISTRAL3_TEXT if text == "ministral3" else llama.MISTRAL_TEXT).describe(c)


MINISTRAL = Architecture(
    ministral, llama.DEFAULTS | {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8}
)
MINISTRAL3_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 262144,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "rope_theta": 1000000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}
MINISTRAL3 = Architecture(ministral3, llama.DEFAULTS | MINISTRAL3_DEFAULTS)
MINISTRAL3_TEXT = text_part(MINISTRAL3)
MISTRAL3_VISION = Architecture(mistral3_vision, {})
SMOLLM3_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "rope_theta": 2000000.0,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "use_sliding_window": False,
    "sliding_window": None,
}
SMOLLM3 = Architecture(smollm3, llama.DEFAULTS | SMOLLM3_DEFAULTS)
SEED_OSS_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 524288,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": True,
    "attention_out_bias": False,
}
SEED_OSS = Architecture(seed_oss, llama.DEFAULTS | SEED_OSS_DEFAULTS)
ERNIE_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "use_bias": False,
}
ERNIE = Architecture(ernie, llama.DEFAULTS | ERNIE_DEFAULTS)
HELIUM_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-8,
    "num_key_value_heads": 20,
    "head_dim": 128,
    "rope_theta": 100000.0,
}
HELIUM = Architecture(helium, llama.DEFAULTS | HELIUM_DEFAULTS)
HUNYUAN = Architecture(hunyuan, llama.DEFAULTS | {"rms_norm_eps": 1e-5})
