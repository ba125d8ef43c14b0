"""Cohere's Command R, R+ and R7B: one norm for both blocks of a layer, neighbouring dimensions rotate together."""

from __future__ import annotations

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
from millrace_worker.models.spec import Attention, Decoder, HeadNorm, Layer, LayerNorm, Residual

DEFAULTS = {
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
}


def cohere(c: ModelConfig) -> tuple[Decoder, Names]:
    qk_norm = HeadNorm(norm=_norm(c), own_weights=True) if c.use_qk_norm else None
    bias = {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    heads = attention(c, rotary(c, interleaved=True), qk_norm=qk_norm, **bias)
    return _decoder(c, [heads] * c.size("num_hidden_layers"))


def cohere2(c: ModelConfig) -> tuple[Decoder, Names]:
    """Layers with a window rotate; the others know no positions."""
    bias = {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    implied = every_nth(c.get("sliding_window_pattern") or 4, c, "full_attention", "sliding_attention")
    windows = layer_windows(c, c.sliding_window, implied)
    position = rotary(c, interleaved=True)
    return _decoder(c, [attention(c, position if window else None, window=window, **bias) for window in windows])


def _norm(c: ModelConfig) -> LayerNorm:
    return LayerNorm(eps=c.layer_norm_eps, bias=False)


def _decoder(c: ModelConfig, heads: list[Attention]) -> tuple[Decoder, Names]:
    norm, mlp, shared = _norm(c), gated_mlp(c, c.hidden_act), Residual.PARALLEL_SHARED_NORM
    layers = [Layer(attention=each, mlp=mlp, norm=norm, residual=shared) for each in heads]
    return decoder(c, layers, norm, logit_scale=c.logit_scale), llama.NAMES


COHERE = Architecture(cohere, DEFAULTS | {"rope_theta": 500000.0, "use_qk_norm": False})
COHERE2 = Architecture(cohere2, DEFAULTS | {"sliding_window": 4096})
