"""DeepSeek V2 and V3: latent attention; the first layers dense, the others mixtures of experts."""

from __future__ import annotations

import math
from dataclasses import replace

from millrace_worker.models.architectures import llama
from millrace_worker.models.architectures.vocabulary import Architecture, activation, decoder, gated_mlp, rotary
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import LatentNames, MoeNames, Names, SplitExperts
from millrace_worker.models.scaling import YarnScaling
from millrace_worker.models.spec import Decoder, Groups, LatentAttention, Layer, Mlp, Moe, RmsNorm, Score, TopK

LATENT = LatentNames(
    query_down="self_attn.q_a_proj",
    query_norm="self_attn.q_a_layernorm",
    query="self_attn.q_b_proj",
    down="self_attn.kv_a_proj_with_mqa",
    norm="self_attn.kv_a_layernorm",
    up="self_attn.kv_b_proj",
)

EXPERTS = MoeNames(
    router="mlp.gate",
    experts=SplitExperts(up=("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"), down="mlp.experts.{}.down_proj"),
    shared_up=("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    shared_down="mlp.shared_experts.down_proj",
)

COMMON = llama.DEFAULTS | {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_interleave": True,
    "moe_layer_freq": 1,
}
V2_DEFAULTS = COMMON | {
    "first_k_dense_replace": 0,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}
V3_DEFAULTS = COMMON | {
    "max_position_embeddings": 4096,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
}

# Of the norms of both latents, whatever `rms_norm_eps` is.
LATENT_EPS = 1e-6


def latent_attention(c: ModelConfig) -> LatentAttention:
    plain, rotated = c.size("qk_nope_head_dim"), c.size("qk_rope_head_dim")
    return LatentAttention(
        num_heads=c.size("num_attention_heads"),
        query_latent_dim=None if c.q_lora_rank is None else c.size("q_lora_rank"),
        latent_dim=c.size("kv_lora_rank"),
        plain_dim=plain,
        rotated_dim=rotated,
        value_dim=c.size("v_head_dim"),
        position=replace(rotary(c, dim=rotated), interleaved=c.rope_interleave),
        scale=(plain + rotated) ** -0.5 * stretch(c) ** 2,
        norm=RmsNorm(eps=LATENT_EPS),
        bias=c.attention_bias,
    )


def stretch(c: ModelConfig) -> float:
    """What queries and keys are each multiplied with beside yarn's own factor (Peng et al. 2023, section 3.4)."""
    rope, scaling = c.rope_parameters(), rotary(c, dim=c.size("qk_rope_head_dim")).scaling
    if scaling is None or not rope.get("mscale_all_dim"):
        return 1.0
    factor = scaling.factor if isinstance(scaling, YarnScaling) else rope.get("factor", 1.0)
    return 1.0 + 0.1 * rope["mscale_all_dim"] * math.log(max(1.0, factor))


def names(c: ModelConfig, *, corrected: bool) -> Names:
    """Layers beyond the last one predict further tokens: they are not served."""
    latent = LATENT if c.q_lora_rank is not None else replace(LATENT, query="self_attn.q_proj")
    first, more = c.size("num_hidden_layers"), c.get("num_nextn_predict_layers", 0)
    ignored = tuple(f"model.layers.{layer}.*" for layer in range(first, first + more))
    experts = replace(EXPERTS, correction="mlp.gate.e_score_correction_bias" if corrected else "")
    return replace(llama.NAMES, qkv="", latent=latent, moe=experts, ignored=llama.NAMES.ignored + ignored)


def mixture(c: ModelConfig, routing: TopK) -> Moe:
    """What the layers from `first_k_dense_replace` on have; shared experts are stored as one of their common size."""
    size, gated = c.size("moe_intermediate_size"), activation(c.hidden_act)
    shared = Mlp(size=size * c.n_shared_experts, activation=gated) if c.n_shared_experts else None
    if c.moe_layer_freq != 1:  # transformers ignores it, as it does the other fields that are refused here
        raise ConfigError(f"config.json: `moe_layer_freq` {c.moe_layer_freq} is not implemented (1 is)")
    count, chosen = c.size("n_routed_experts"), c.size("num_experts_per_tok")
    groups = routing.groups
    eligible = count if groups is None else count // groups.count * groups.chosen
    if chosen > eligible or (groups is not None and (count % groups.count or groups.chosen > groups.count)):
        raise ConfigError(
            f"config.json: `num_experts_per_tok` {chosen} of `n_routed_experts` {count} cannot be chosen "
            f"with `n_group` {c.n_group} and `topk_group` {c.topk_group}"
        )
    expert = Mlp(size=size, activation=gated)
    return Moe(num_experts=count, top_k=chosen, expert=expert, routing=routing, shared=shared)


def deepseek(c: ModelConfig, routing: TopK) -> tuple[Decoder, Names]:
    norm, heads, dense = RmsNorm(eps=c.rms_norm_eps), latent_attention(c), gated_mlp(c, c.hidden_act, bias=c.mlp_bias)
    count, first = c.size("num_hidden_layers"), c.first_k_dense_replace
    blocks = [dense] * min(first, count) + [mixture(c, routing)] * max(0, count - first)
    layers = [Layer(attention=heads, mlp=mlp, norm=norm) for mlp in blocks]
    return decoder(c, layers, norm), names(c, corrected=routing.corrected)


def v2(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.norm_topk_prob:
        raise ConfigError("config.json: `norm_topk_prob` is not implemented for DeepSeek V2, which never has it")
    match c.topk_method:
        case "greedy":
            groups = None
        case "group_limited_greedy":
            groups = Groups(count=c.size("n_group"), chosen=c.size("topk_group"), best=1)
        case other:
            raise ConfigError(
                f"config.json: `topk_method` {other!r} is not implemented (greedy, group_limited_greedy are)"
            )
    return deepseek(c, TopK(scale=c.routed_scaling_factor, groups=groups))


def v3(c: ModelConfig) -> tuple[Decoder, Names]:
    if c.topk_method != "noaux_tc":
        raise ConfigError(
            f"config.json: `topk_method` {c.topk_method!r} is not implemented for DeepSeek V3 (noaux_tc is)"
        )
    routing = TopK(
        score=Score.SIGMOID,
        normalize=1.0 if c.norm_topk_prob else None,
        scale=c.routed_scaling_factor,
        corrected=True,
        groups=Groups(count=c.size("n_group"), chosen=c.size("topk_group"), best=2),
    )
    return deepseek(c, routing)


DEEPSEEK_V2 = Architecture(v2, V2_DEFAULTS)
DEEPSEEK_V3 = Architecture(v3, V3_DEFAULTS)
