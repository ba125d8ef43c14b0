"""Granite MoE, without and with an expert for every token."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures.llama import DEFAULTS, NAMES
from millrace_worker.models.architectures.moe import mixture
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, gated_mlp, rotary
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import MoeNames, Names, StackedExperts
from millrace_worker.models.spec import Decoder, Layer, RmsNorm

GRANITE_NAMES = replace(
    NAMES,
    moe=MoeNames(
        router="block_sparse_moe.router.layer",
        experts=StackedExperts(up="block_sparse_moe.input_linear.weight", down="block_sparse_moe.output_linear.weight"),
        shared_up="shared_mlp.input_linear",
        shared_down="shared_mlp.output_linear",
    ),
)


def granite_moe(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, bias = RmsNorm(eps=c.rms_norm_eps), {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    heads = attention(c, rotary(c), scale=float(c.attention_multiplier), **bias)
    shared = None
    if c.get("shared_intermediate_size"):
        shared = replace(gated_mlp(c, c.hidden_act), size=c.size("shared_intermediate_size"))
    moe = mixture(c, c.size("intermediate_size"), shared=shared)
    layer = Layer(attention=heads, mlp=moe, norm=norm, residual_scale=float(c.residual_multiplier))
    scales = {"embed_scale": float(c.embedding_multiplier), "logit_scale": 1.0 / c.positive("logits_scaling")}
    return decoder(c, layer, norm, **scales), GRANITE_NAMES


GRANITE_MOE = Architecture(
    granite_moe,
    DEFAULTS
    | {
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
)
