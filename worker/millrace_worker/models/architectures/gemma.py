"""Gemma: 1 is Llama with a scaled embedding; 2 has norms on both sides of each block, local and global layers in turn
and capped scores; 3 normalizes q and k instead, and turns local layers by other frequencies.
VaultGemma is 2 without the norms after its blocks."""

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
    layer_windows,
    rotary,
    text_part,
)
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, HeadNorm, Layer, RmsNorm

NAMES = replace(
    llama.NAMES,
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "head_dim": 256,
}
GEMMA2_DEFAULTS = DEFAULTS | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
# Those of the 4B model: the files of models that see leave them out.
GEMMA3_DEFAULTS = GEMMA2_DEFAULTS | {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}


def gemma(c: ModelConfig) -> tuple[Decoder, Names]:
    """The activation is the approximate one, also where old files say `gelu`."""
    _check_causal(c)
    norm, stated = _norm(c), c.get("hidden_activation") or c.hidden_act
    mlp = gated_mlp(c, "gelu_pytorch_tanh" if stated == "gelu" else stated)
    heads = attention(c, rotary(c), qkv_bias=c.attention_bias, out_bias=c.attention_bias)
    return decoder(
        c, Layer(attention=heads, mlp=mlp, norm=norm), norm, embed_scale=c.size("hidden_size") ** 0.5
    ), llama.NAMES


def gemma2(c: ModelConfig) -> tuple[Decoder, Names]:
    implied = every_nth(2, c, "full_attention", "sliding_attention")
    windows = layer_windows(c, c.sliding_window, implied)
    return _sandwich(c, [{"window": window, "position": rotary(c)} for window in windows])


def vault_gemma(c: ModelConfig) -> tuple[Decoder, Names]:
    spec, names = gemma2(c)
    return replace(spec, layers=tuple(replace(layer, post_norm=False) for layer in spec.layers)), names


def gemma3(c: ModelConfig) -> tuple[Decoder, Names]:
    implied = every_nth(c.sliding_window_pattern, c, "full_attention", "sliding_attention")
    kinds: list[dict[str, Any]] = []
    for window in layer_windows(c, c.sliding_window, implied):
        position = rotary(c, "sliding_attention" if window else "full_attention")
        kinds.append({"window": window, "position": position, "qk_norm": HeadNorm(norm=_norm(c))})
    return _sandwich(c, kinds)


def _sandwich(c: ModelConfig, kinds: list[dict[str, Any]]) -> tuple[Decoder, Names]:
    """The layers of Gemma 2 and 3, from what differs among their attentions."""
    _check_causal(c)
    norm, mlp = _norm(c), gated_mlp(c, c.hidden_activation or "gelu_pytorch_tanh")
    same = {
        "scale": c.positive("query_pre_attn_scalar") ** -0.5,
        "softcap": c.attn_logit_softcapping,
        "qkv_bias": c.attention_bias,
        "out_bias": c.attention_bias,
    }
    heads = [attention(c, **same, **kind) for kind in kinds]
    layers = [Layer(attention=each, mlp=mlp, norm=norm, post_norm=True) for each in heads]
    ends = {"embed_scale": c.size("hidden_size") ** 0.5, "logit_softcap": c.final_logit_softcapping}
    return decoder(c, layers, norm, **ends), NAMES


def _norm(c: ModelConfig) -> RmsNorm:
    return RmsNorm(eps=c.rms_norm_eps, unit_offset=True)


def _check_causal(c: ModelConfig) -> None:
    if c.get("use_bidirectional_attention"):
        raise ConfigError("config.json: `use_bidirectional_attention` is not implemented: this server generates text")


GEMMA = Architecture(gemma, DEFAULTS | {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 16})
GEMMA2 = Architecture(gemma2, GEMMA2_DEFAULTS)
GEMMA3 = Architecture(gemma3, GEMMA3_DEFAULTS)
GEMMA3_VISION = text_part(GEMMA3)
VAULT_GEMMA = Architecture(vault_gemma, GEMMA2_DEFAULTS)
