"""BLOOM: ALiBi, embeddings that are normalized before the first layer."""

from __future__ import annotations

from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp
from millrace_worker.models.hf_config import ModelConfig, UnsupportedError
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Alibi, Decoder, Layer, LayerNorm

NAMES = Names(
    embed="transformer.word_embeddings",
    embed_norm="transformer.word_embeddings_layernorm",
    layer="transformer.h.{}",
    final_norm="transformer.ln_f",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    qkv="self_attention.query_key_value",
    qkv_grouped=True,
    out="self_attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    optional_prefix="transformer.",
)

DEFAULTS = {
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,  # what it was trained on; nothing in the model ends there
    "tie_word_embeddings": True,
    "apply_residual_connection_post_layernorm": False,
}


def bloom(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.apply_residual_connection_post_layernorm:
        raise UnsupportedError("config.json: there is no spec for `apply_residual_connection_post_layernorm`")
    norm, hidden = LayerNorm(eps=c.layer_norm_epsilon), c.size("hidden_size")
    heads = attention(c, Alibi(), qkv_bias=True, out_bias=True)
    layer = Layer(attention=heads, mlp=plain_mlp(4 * hidden, "gelu_pytorch_tanh"), norm=norm)
    return decoder(c, layer, norm, embed_norm=norm), NAMES


BLOOM = Architecture(bloom, DEFAULTS)
