"""GPT-2: learned positions, linears stored as (in, out)."""

from __future__ import annotations

from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp
from millrace_worker.models.hf_config import ModelConfig, UnsupportedError
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, LayerNorm

NAMES = Names(
    embed="transformer.wte",
    positions="transformer.wpe",
    layer="transformer.h.{}",
    final_norm="transformer.ln_f",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    qkv="attn.c_attn",
    out="attn.c_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
    transposed=True,
    optional_prefix="transformer.",
    ignored=("*.attn.bias", "*.attn.masked_bias"),
)

DEFAULTS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def gpt2(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.add_cross_attention:
        raise UnsupportedError("config.json: `add_cross_attention` is not implemented: there is no encoder")
    norm = LayerNorm(eps=c.layer_norm_epsilon)
    mlp = plain_mlp(c.n_inner or 4 * c.size("hidden_size"), c.activation_function)
    scale = (c.size("hidden_size") // c.size("num_attention_heads")) ** -0.5 if c.scale_attn_weights else 1.0
    layers = []
    for index in range(c.size("num_hidden_layers")):
        divisor = index + 1 if c.scale_attn_by_inverse_layer_idx else 1
        heads = attention(c, None, scale=scale / divisor, qkv_bias=True, out_bias=True)
        layers.append(Layer(attention=heads, mlp=mlp, norm=norm))
    return decoder(c, layers, norm, learned_positions=True), NAMES


GPT2 = Architecture(gpt2, DEFAULTS)
