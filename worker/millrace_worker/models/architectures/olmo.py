"""OLMo: 1 has norms without weights, 2 and 3 norms behind the blocks and over all heads of q and of k."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import (
    Architecture,
    attention,
    decoder,
    every_nth,
    gated_mlp,
    layer_windows,
    rotary,
)
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Attention, Decoder, Layer, LayerNorm, RmsNorm, WidthNorm

NAMES = replace(
    llama.NAMES,
    attn_norm="",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="",
    mlp_post_norm="post_feedforward_layernorm",
)

DEFAULTS = llama.DEFAULTS | {"rms_norm_eps": 1e-5}


def olmo(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = LayerNorm(eps=1e-5, weight=False)
    bias = {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    clipped = attention(c, rotary(c), clip=c.clip_qkv, **bias)
    return decoder(c, Layer(attention=clipped, mlp=gated_mlp(c, c.hidden_act), norm=norm), norm), llama.NAMES


def olmo2(c: ModelConfig) -> tuple[Decoder, Names]:
    return _decoder(c, [attention(c, rotary(c), **_over(c))] * c.size("num_hidden_layers"))


def olmo3(c: ModelConfig) -> tuple[Decoder, Names]:
    implied = every_nth(4, c, "full_attention", "sliding_attention")
    heads = []
    for window in layer_windows(c, c.sliding_window, implied):
        position = rotary(c, "sliding_attention" if window else "full_attention")
        heads.append(attention(c, position, window=window, **_over(c)))
    return _decoder(c, heads)


def _over(c: ModelConfig) -> dict[str, object]:
    qk_norm = WidthNorm(norm=RmsNorm(eps=c.rms_norm_eps))
    return {"qk_norm": qk_norm, "qkv_bias": c.attention_bias, "out_bias": c.attention_bias}


def _decoder(c: ModelConfig, heads: list[Attention]) -> tuple[Decoder, Names]:
    norm, mlp = RmsNorm(eps=c.rms_norm_eps), gated_mlp(c, c.hidden_act)
    layers = [Layer(attention=each, mlp=mlp, norm=norm, pre_norm=False, post_norm=True) for each in heads]
    return decoder(c, layers, norm), NAMES


OLMO = Architecture(olmo, llama.DEFAULTS | {"clip_qkv": None})
OLMO2 = Architecture(olmo2, DEFAULTS)
OLMO3 = Architecture(olmo3, DEFAULTS | {"rope_theta": 500000.0, "sliding_window": 4096})
