"""Llama and the families that differ from it in a field or two: Mistral, Qwen 2 and 2.5, Qwen 3."""

from __future__ import annotations

from typing import Any

from millrace_worker.models.architectures.vocabulary import (
    Architecture,
    attention,
    decoder,
    gated_mlp,
    layer_windows,
    rotary,
    text_part,
)
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, HeadNorm, Layer, RmsNorm

NAMES = Names(
    embed="model.embed_tokens",
    layer="model.layers.{}",
    final_norm="model.norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    out="self_attn.o_proj",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    ignored=("*.rotary_emb.inv_freq",),
)

DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
}
QWEN_DEFAULTS = DEFAULTS | {
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def llama(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = RmsNorm(eps=c.rms_norm_eps)
    heads = attention(c, rotary(c), qkv_bias=c.attention_bias, out_bias=c.attention_bias)
    layer = Layer(attention=heads, mlp=gated_mlp(c, c.hidden_act, bias=c.mlp_bias), norm=norm)
    return decoder(c, layer, norm), NAMES


def mistral(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = RmsNorm(eps=c.rms_norm_eps)
    windowed = attention(c, rotary(c), window=c.sliding_window)
    return decoder(c, Layer(attention=windowed, mlp=gated_mlp(c, c.hidden_act), norm=norm), norm), NAMES


def qwen_windows(c: ModelConfig) -> list[int | None]:
    """Layers from `max_window_layers` on have a window, if windows are used at all."""
    first, count = c.max_window_layers, c.size("num_hidden_layers")
    implied = ["sliding_attention" if index >= first else "full_attention" for index in range(count)]
    return layer_windows(c, c.sliding_window if c.use_sliding_window else None, implied)


def qwen2(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, mlp = RmsNorm(eps=c.rms_norm_eps), gated_mlp(c, c.hidden_act)
    biased = [attention(c, rotary(c), qkv_bias=True, window=window) for window in qwen_windows(c)]
    return decoder(c, [Layer(attention=heads, mlp=mlp, norm=norm) for heads in biased], norm), NAMES


def qwen3(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, mlp = RmsNorm(eps=c.rms_norm_eps), gated_mlp(c, c.hidden_act)
    bias = {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    normed = [attention(c, rotary(c), qk_norm=HeadNorm(norm=norm), window=window, **bias) for window in qwen_windows(c)]
    return decoder(c, [Layer(attention=heads, mlp=mlp, norm=norm) for heads in normed], norm), NAMES


LLAMA = Architecture(llama, DEFAULTS)
MISTRAL = Architecture(mistral, DEFAULTS | {"max_position_embeddings": 4096 * 32, "sliding_window": 4096})
MISTRAL3_DEFAULTS: dict[str, Any] = {
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 1e9,
    "sliding_window": None,
}
MISTRAL_TEXT = text_part(Architecture(mistral, DEFAULTS | MISTRAL3_DEFAULTS))
QWEN2 = Architecture(qwen2, QWEN_DEFAULTS)
QWEN3 = Architecture(qwen3, QWEN_DEFAULTS | {"head_dim": 128})
