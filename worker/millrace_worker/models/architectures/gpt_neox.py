"""GPT-NeoX and Pythia: a part of each head rotates; attention and MLP in parallel or in sequence."""

from __future__ import annotations

from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, LayerNorm, Residual

NAMES = Names(
    embed="gpt_neox.embed_in",
    layer="gpt_neox.layers.{}",
    final_norm="gpt_neox.final_layer_norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    qkv="attention.query_key_value",
    qkv_grouped=True,
    out="attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    head="embed_out",
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
)

DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "attention_bias": True,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000.0,
}


def gpt_neox(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = LayerNorm(eps=c.layer_norm_eps)
    layer = Layer(
        attention=attention(c, rotary(c), qkv_bias=c.attention_bias, out_bias=c.attention_bias),
        mlp=plain_mlp(c.intermediate_size, c.hidden_act),
        norm=norm,
        residual=Residual.PARALLEL if c.use_parallel_residual else Residual.SEQUENTIAL,
    )
    return decoder(c, layer, norm), NAMES


GPT_NEOX = Architecture(gpt_neox, DEFAULTS)
