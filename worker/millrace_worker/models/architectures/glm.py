"""GLM and GLM 4: half of each head rotates, neighbouring dimensions together; GLM 4 has norms on both sides."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, gated_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Layer, RmsNorm

NAMES = replace(llama.NAMES, up="mlp.gate_up_proj")
GLM4_NAMES = replace(NAMES, attn_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm")

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 0.00000015625,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "head_dim": 128,
    "num_key_value_heads": 2,
}


def glm(c: ModelConfig) -> tuple[Decoder, Names]:
    return _decoder(c, post_norm=False), NAMES


def glm4(c: ModelConfig) -> tuple[Decoder, Names]:
    return _decoder(c, post_norm=True), GLM4_NAMES


def _decoder(c: ModelConfig, *, post_norm: bool) -> Decoder:
    norm, heads = RmsNorm(eps=c.rms_norm_eps), attention(c, rotary(c, interleaved=True), qkv_bias=c.attention_bias)
    layer = Layer(attention=heads, mlp=gated_mlp(c, c.hidden_act), norm=norm, post_norm=post_norm)
    return decoder(c, layer, norm)


GLM = Architecture(glm, DEFAULTS)
GLM4 = Architecture(glm4, DEFAULTS)
