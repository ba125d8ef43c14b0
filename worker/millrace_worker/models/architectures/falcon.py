"""Falcon in its three styles: 7B (one KV head, one shared norm), 40B (KV groups, two norms), RW (ALiBi, sequential)."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Alibi, Decoder, Layer, LayerNorm, Residual

NAMES = Names(
    embed="transformer.word_embeddings",
    layer="transformer.h.{}",
    final_norm="transformer.ln_f",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    qkv="self_attention.query_key_value",
    qkv_grouped=True,
    out="self_attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    ignored=("*.rotary_emb.inv_freq",),
)

DEFAULTS = {
    "activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "num_kv_heads": None,
    "num_ln_in_parallel_attn": None,
    "ffn_hidden_size": None,
}


def falcon(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = LayerNorm(eps=c.layer_norm_epsilon)
    grouped = c.new_decoder_architecture
    all_heads = c.size("num_attention_heads")
    kv_heads = (c.num_kv_heads or all_heads) if grouped else 1 if c.multi_query else all_heads
    two_norms = grouped and c.num_ln_in_parallel_attn != 1
    if not (grouped or c.parallel_attn):
        residual = Residual.SEQUENTIAL
    else:
        residual = Residual.PARALLEL if two_norms else Residual.PARALLEL_SHARED_NORM
    position = Alibi(scaled=True) if c.alibi else rotary(c)
    layer = Layer(
        attention=attention(c, position, num_kv_heads=kv_heads, qkv_bias=c.bias, out_bias=c.bias),
        mlp=plain_mlp(c.ffn_hidden_size or 4 * c.size("hidden_size"), c.activation, bias=c.bias),
        norm=norm,
        residual=residual,
    )
    names = replace(NAMES, attn_norm="ln_attn", mlp_norm="ln_mlp") if two_norms else NAMES
    return decoder(c, layer, norm), names


def refined_web(c: ModelConfig) -> tuple[Decoder, Names]:
    """Falcon before transformers had it: the 40B's style had a model type of its own instead of a field."""
    return falcon(c.with_defaults(DEFAULTS | {"new_decoder_architecture": c.get("model_type") == "RefinedWeb"}))


FALCON = Architecture(falcon, DEFAULTS)
REFINED_WEB = Architecture(refined_web, DEFAULTS)
