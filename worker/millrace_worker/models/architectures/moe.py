"""Mixtures of experts that are Llamas otherwise: Mixtral, Phi-3.5-MoE, Qwen 2 and 3 MoE, OLMoE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from millrace_worker.models.architectures.llama import DEFAULTS, NAMES, QWEN_DEFAULTS, qwen_windows
from millrace_worker.models.architectures.vocabulary import (
    Architecture,
    activation,
    attention,
    decoder,
    gated_mlp,
    rotary,
)
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import MoeNames, Names, SplitExperts
from millrace_worker.models.spec import (
    Decoder,
    FeedForward,
    HeadNorm,
    Layer,
    LayerNorm,
    Mlp,
    Moe,
    RmsNorm,
    SparseMixer,
    TopK,
    WidthNorm,
)

MIXTRAL_NAMES = replace(
    NAMES,
    moe=MoeNames(
        router="block_sparse_moe.gate",
        experts=SplitExperts(
            up=("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
            down="block_sparse_moe.experts.{}.w2",
        ),
    ),
)
QWEN_EXPERTS = MoeNames(
    router="mlp.gate",
    experts=SplitExperts(up=("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"), down="mlp.experts.{}.down_proj"),
    shared_up=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    shared_down="mlp.shared_expert.down_proj",
    shared_gate="mlp.shared_expert_gate",
)
QWEN_NAMES = replace(NAMES, moe=QWEN_EXPERTS)


def mixture(c: ModelConfig, size: int, **over: Any) -> Moe:
    """Gated experts of `size`. Raises ConfigError where a token would need more experts than there are."""
    count, chosen = c.size("num_local_experts"), c.size("num_experts_per_tok")
    if chosen > count:
        raise ConfigError(f"config.json: `num_experts_per_tok` {chosen} is more than `num_local_experts` {count}")
    common = {
        "num_experts": count,
        "top_k": chosen,
        "expert": Mlp(size=size, activation=activation(c.hidden_act)),
        "routing": TopK(normalize=1.0 if c.get("norm_topk_prob", True) else None),
    }
    return Moe(**common | over)


def mixtral(c: ModelConfig) -> tuple[Decoder, Names]:
    norm = RmsNorm(eps=c.rms_norm_eps)
    heads = attention(c, rotary(c), window=c.sliding_window)
    layer = Layer(attention=heads, mlp=mixture(c, c.size("intermediate_size")), norm=norm)
    return decoder(c, layer, norm), MIXTRAL_NAMES


def phimoe(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.size("num_experts_per_tok") != 2:
        raise ConfigError(f"config.json: `num_experts_per_tok` must be 2 for this router, not {c.num_experts_per_tok}")
    norm, bias = LayerNorm(eps=c.rms_norm_eps), {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    heads = attention(c, rotary(c), window=c.sliding_window, **bias)
    moe = mixture(c, c.size("intermediate_size"), routing=SparseMixer(jitter=c.router_jitter_noise))
    layer = Layer(attention=heads, mlp=moe, norm=norm)
    return decoder(c, layer, norm, head_bias=c.lm_head_bias), MIXTRAL_NAMES


def olmoe(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, bias = RmsNorm(eps=c.rms_norm_eps), {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    heads = attention(c, rotary(c), qk_norm=WidthNorm(norm=norm), clip=c.clip_qkv, **bias)
    moe = mixture(c, c.size("intermediate_size"))
    return decoder(c, Layer(attention=heads, mlp=moe, norm=norm), norm), QWEN_NAMES


def qwen_blocks(c: ModelConfig, moe: Moe) -> list[FeedForward]:
    """Every `decoder_sparse_step`th layer is a mixture, but for those that are named."""
    plain, step, dense = gated_mlp(c, c.hidden_act), c.size("decoder_sparse_step"), c.mlp_only_layers or ()
    layers = range(c.size("num_hidden_layers"))
    return [moe if index not in dense and (index + 1) % step == 0 else plain for index in layers]


def qwen2_moe(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, shared = RmsNorm(eps=c.rms_norm_eps), gated_mlp(c, c.hidden_act)
    shared = replace(shared, size=c.size("shared_expert_intermediate_size"))
    blocks = qwen_blocks(c, mixture(c, c.size("moe_intermediate_size"), shared=shared, shared_gate=True))
    heads = [attention(c, rotary(c), qkv_bias=c.qkv_bias, window=window) for window in qwen_windows(c)]
    layers = [Layer(attention=each, mlp=mlp, norm=norm) for each, mlp in zip(heads, blocks, strict=True)]
    return decoder(c, layers, norm), QWEN_NAMES


def qwen3_moe(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, bias = RmsNorm(eps=c.rms_norm_eps), {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias}
    window = c.sliding_window if c.use_sliding_window else None
    heads = attention(c, rotary(c), qk_norm=HeadNorm(norm=norm), window=window, **bias)
    blocks = qwen_blocks(c, mixture(c, c.size("moe_intermediate_size")))
    return decoder(c, [Layer(attention=heads, mlp=mlp, norm=norm) for mlp in blocks], norm), QWEN_NAMES


MIXTRAL_DEFAULTS = DEFAULTS | {
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
MIXTRAL = Architecture(mixtral, MIXTRAL_DEFAULTS)
PHIMOE = Architecture(
    phimoe, MIXTRAL_DEFAULTS | {"num_local_experts": 16, "router_jitter_noise": 0.01, "lm_head_bias": False}
)
OLMOE = Architecture(
    olmoe,
    DEFAULTS
    | {
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "clip_qkv": None,
        "norm_topk_prob": False,
        "num_local_experts": 64,
        "num_experts_per_tok": 8,
    },
)
QWEN_MOE_DEFAULTS = QWEN_DEFAULTS | {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}
QWEN2_MOE = Architecture(
    qwen2_moe,
    QWEN_MOE_DEFAULTS
    | {
        "qkv_bias": True,
        "num_local_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
)
QWEN3_MOE = Architecture(
    qwen3_moe,
    QWEN_MOE_DEFAULTS | {"num_local_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
)
