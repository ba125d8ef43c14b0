"""Gemma 2: norms on both sides of each block, local and global layers in turn, capped scores."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import (
    Architecture,
    attention,
    decoder,
    gated_mlp,
    layer_windows,
    rotary,
)
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, RmsNorm

NAMES = replace(
    llama.NAMES,
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def gemma2(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.get("use_bidirectional_attention"):
        raise ConfigError("config.json: `use_bidirectional_attention` is not implemented: this server generates text")
    norm = RmsNorm(eps=c.rms_norm_eps, unit_offset=True)
    mlp = gated_mlp(c, c.hidden_activation or "gelu_pytorch_tanh")
    count = c.size("num_hidden_layers")
    alternating = ["full_attention" if index % 2 else "sliding_attention" for index in range(count)]
    layers = []
    for window in layer_windows(c, c.sliding_window, alternating):
        heads = attention(
            c,
            rotary(c),
            window=window,
            scale=c.query_pre_attn_scalar**-0.5,
            softcap=c.attn_logit_softcapping,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )
        layers.append(Layer(attention=heads, mlp=mlp, norm=norm, post_norm=True))
    scale = c.hidden_size**0.5
    return decoder(c, layers, norm, embed_scale=scale, logit_softcap=c.final_logit_softcapping), NAMES


GEMMA2 = Architecture(gemma2, DEFAULTS)
