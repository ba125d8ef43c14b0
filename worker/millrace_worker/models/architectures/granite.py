"""Granite and MiniCPM: Llama with a factor on the embeddings, on what blocks add, on scores and on logits."""

from __future__ import annotations

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, gated_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, RmsNorm

FACTORS = {
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}


def granite(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, mlp = RmsNorm(eps=c.rms_norm_eps), gated_mlp(c, c.hidden_act, bias=c.mlp_bias)
    bias = {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    heads = attention(c, rotary(c), scale=c.attention_multiplier, **bias)
    layer = Layer(attention=heads, mlp=mlp, norm=norm, residual_scale=c.residual_multiplier)
    factors = {"embed_scale": c.embedding_multiplier, "logit_scale": 1 / c.positive("logits_scaling")}
    return decoder(c, layer, norm, **factors), llama.NAMES


def minicpm(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, mlp = RmsNorm(eps=c.rms_norm_eps), gated_mlp(c, c.hidden_act)
    scale = c.scale_depth / c.size("num_hidden_layers") ** 0.5
    layer = Layer(attention=attention(c, rotary(c)), mlp=mlp, norm=norm, residual_scale=scale)
    factors = {"embed_scale": c.scale_emb, "logit_scale": c.dim_model_base / c.size("hidden_size")}
    return decoder(c, layer, norm, **factors), llama.NAMES


GRANITE = Architecture(granite, llama.DEFAULTS | FACTORS)
MINICPM = Architecture(
    minicpm, llama.DEFAULTS | {"scale_emb": 1, "scale_depth": 1, "dim_model_base": 1, "tie_word_embeddings": True}
)
