"""StableLM 2 and 3B: a quarter of each head rotates; heads may have norms of their own, blocks may be parallel."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, gated_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, HeadNorm, Layer, LayerNorm, Residual

NAMES = replace(llama.NAMES, q_norm="self_attn.q_layernorm.norms.{}", k_norm="self_attn.k_layernorm.norms.{}")

DEFAULTS = {
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
}


def stablelm(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = LayerNorm(eps=c.layer_norm_eps)
    qk_norm = HeadNorm(norm=LayerNorm(eps=c.layer_norm_eps, bias=False), own_weights=True) if c.qk_layernorm else None
    layer = Layer(
        attention=attention(c, rotary(c), qk_norm=qk_norm, qkv_bias=c.use_qkv_bias),
        mlp=gated_mlp(c, c.hidden_act),
        norm=norm,
        residual=Residual.PARALLEL_SHARED_NORM if c.use_parallel_residual else Residual.SEQUENTIAL,
    )
    return decoder(c, layer, norm), NAMES


STABLELM = Architecture(stablelm, DEFAULTS)
