"""Llama 4, for text alone: most layers rotate and see their own chunk of it; every fourth sees all, by no position."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures.llama import DEFAULTS, NAMES
from millrace_worker.models.architectures.moe import mixture
from millrace_worker.models.architectures.vocabulary import (
    Architecture,
    attention,
    decoder,
    gated_mlp,
    rotary,
    text_part,
)
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import MoeNames, Names, StackedExperts
from millrace_worker.models.spec import Attention, Decoder, HeadNorm, InputSigmoid, Layer, QueryGrowth, RmsNorm

LLAMA4_NAMES = replace(
    NAMES,
    up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
    moe=MoeNames(
        router="feed_forward.router",
        experts=StackedExperts(
            up="feed_forward.experts.gate_up_proj", down="feed_forward.experts.down_proj", transposed=True
        ),
        shared_up=("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
        shared_down="feed_forward.shared_expert.down_proj",
    ),
)


def llama4(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, count = RmsNorm(eps=c.rms_norm_eps), c.size("num_hidden_layers")
    expert = gated_mlp(c, c.hidden_act)
    moe = mixture(c, expert.size, routing=InputSigmoid(), shared=expert)
    plain = replace(expert, size=c.size("intermediate_size_mlp"))
    step = c.size("interleave_moe_layer_step")
    mixed = c.moe_layers if c.get("moe_layers") is not None else range(step - 1, count, step)
    layers = [
        Layer(attention=each, mlp=moe if index in mixed else plain, norm=norm) for index, each in enumerate(_heads(c))
    ]
    return decoder(c, layers, norm), LLAMA4_NAMES


def _heads(c: ModelConfig) -> list[Attention]:
    """Of each layer. `no_rope_layers` is 1 where a layer does rotate."""
    count, bias = c.size("num_hidden_layers"), {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    rotates = c.get("no_rope_layers") or [(index + 1) % c.size("no_rope_layer_interval") != 0 for index in range(count)]
    kinds = c.get("layer_types") or ["chunked_attention" if each else "full_attention" for each in rotates]
    if len(rotates) != count or len(kinds) != count or not set(kinds) <= {"chunked_attention", "full_attention"}:
        raise ConfigError(
            "config.json: `no_rope_layers` and `layer_types` (full_attention, chunked_attention) must speak of each of "
            f"{count} layers, not {rotates} and {kinds}"
        )
    qk_norm = HeadNorm(norm=RmsNorm(eps=c.rms_norm_eps, weight=False), after_rotation=True) if c.use_qk_norm else None
    growth = QueryGrowth(beta=float(c.attn_scale), step=c.size("floor_scale"), offset=1)
    position = replace(rotary(c), interleaved=True)
    chunk = c.size("attention_chunk_size") if "chunked_attention" in kinds else None
    return [
        attention(
            c,
            position if rotating else None,
            chunk=chunk if kind == "chunked_attention" else None,
            qk_norm=qk_norm if rotating else None,
            query_growth=None if rotating or not c.attn_temperature_tuning else growth,
            **bias,
        )
        for rotating, kind in zip(rotates, kinds, strict=True)
    ]


LLAMA4 = Architecture(
    llama4,
    DEFAULTS
    | {
        "head_dim": 128,
        "max_position_embeddings": 4096 * 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "use_qk_norm": True,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    },
)
# As published, Llama 4 is the language model within one that sees. These are of Scout.
LLAMA4_VISION = text_part(
    replace(
        LLAMA4,
        defaults={
            **LLAMA4.defaults,
            "vocab_size": 202048,
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
        },
    )
)
