"""OPT and Galactica: learned positions whose table begins two rows earlier; OPT-350m normalizes the stream itself and
embeds in another width."""

from __future__ import annotations

from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, plain_mlp
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, LayerNorm, Residual

NAMES = Names(
    embed="model.decoder.embed_tokens",
    embed_in="model.decoder.project_in",
    embed_out="model.decoder.project_out",
    positions="model.decoder.embed_positions",
    layer="model.decoder.layers.{}",
    final_norm="model.decoder.final_layer_norm",
    attn_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    up="fc1",
    down="fc2",
    optional_prefix="model.",
    ignored=("*decoder.version",),
)

DEFAULTS = {
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "enable_bias": True,
    "ffn_dim": 3072,
    "layer_norm_elementwise_affine": True,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "word_embed_proj_dim": None,
}


def opt(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = LayerNorm(eps=1e-5, weight=c.layer_norm_elementwise_affine)
    bias, before = c.enable_bias, c.do_layer_norm_before
    layer = Layer(
        attention=attention(c, None, qkv_bias=bias, out_bias=bias),
        mlp=plain_mlp(c.ffn_dim, c.activation_function, bias=bias),
        norm=norm,
        residual=Residual.SEQUENTIAL if before else Residual.NORMED_STREAM,
    )
    final, width = norm if before and not c.get("_remove_final_layer_norm") else None, c.word_embed_proj_dim
    narrow = None if width in (None, c.hidden_size) else width
    return decoder(c, layer, final, learned_positions=True, position_offset=2, embed_width=narrow), NAMES


OPT = Architecture(opt, DEFAULTS)
