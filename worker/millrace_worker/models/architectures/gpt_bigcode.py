"""GPT-BigCode (StarCoder): GPT-2 whose heads may share one K and V, linears stored as (out, in); SantaCoder, its
forerunner, stored as (in, out) with q apart from k and v."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import gpt2
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp
from millrace_worker.models.hf_config import ModelConfig, UnsupportedError
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, LayerNorm

NAMES = replace(gpt2.NAMES, transposed=False)
SANTACODER_NAMES = replace(gpt2.NAMES, qkv=("attn.q_attn", "attn.kv_attn"))

DEFAULTS = {
    "activation_function": "gelu_pytorch_tanh",
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "add_cross_attention": False,
    "multi_query": True,
}


def gpt_bigcode(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.add_cross_attention:
        raise UnsupportedError("config.json: `add_cross_attention` is not implemented: there is no encoder")
    norm, kv_heads = LayerNorm(eps=c.layer_norm_epsilon), 1 if c.multi_query else c.size("num_attention_heads")
    scale = None if c.scale_attn_weights else 1.0
    layer = Layer(
        attention=attention(c, None, num_kv_heads=kv_heads, scale=scale, qkv_bias=True, out_bias=True),
        mlp=plain_mlp(c.n_inner or 4 * c.size("hidden_size"), c.activation_function),
        norm=norm,
    )
    # With a K and V for each head, the rows of a head stand together.
    return decoder(c, layer, norm, learned_positions=True), replace(NAMES, qkv_grouped=not c.multi_query)


def santacoder(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.attention_head_type != "multiquery":
        raise UnsupportedError(
            f"config.json: `attention_head_type` {c.attention_head_type!r} is not implemented ('multiquery' is)"
        )
    return gpt_bigcode(c)[0], SANTACODER_NAMES


GPT_BIGCODE = Architecture(gpt_bigcode, DEFAULTS)
SANTACODER_DEFAULTS = DEFAULTS | {"activation_function": "gelu_new", "attention_head_type": "multiquery"}
SANTACODER = Architecture(santacoder, SANTACODER_DEFAULTS)
