"""Mixtures with experts that compute every token, and a bias that corrects the choice: GLM 4 MoE, ERNIE 4.5."""

from __future__ import annotations

from dataclasses import replace

from millrace_worker.models.architectures.llama import DEFAULTS, NAMES
from millrace_worker.models.architectures.moe import QWEN_EXPERTS, mixture
from millrace_worker.models.architectures.vocabulary import Architecture, attention, decoder, gated_mlp, rotary
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.spec import Decoder, Groups, HeadNorm, Layer, Mlp, RmsNorm, Score, TopK

SHARED_EXPERTS = replace(
    QWEN_EXPERTS,
    correction="mlp.gate.e_score_correction_bias",
    shared_up=("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    shared_down="mlp.shared_experts.down_proj",
)


def expert_groups(c: ModelConfig, best: int) -> Groups | None:
    """`n_group` groups of which `topk_group` are kept, a group being as good as its `best` best experts."""
    count, chosen, experts = c.size("n_group"), c.size("topk_group"), c.size("num_local_experts")
    if chosen > count or experts % count or chosen * (experts // count) < c.size("num_experts_per_tok"):
        raise ConfigError(
            f"config.json: {experts} experts in {count} groups (`n_group`), {chosen} of them kept (`topk_group`), "
            f"do not give `num_experts_per_tok` {c.num_experts_per_tok}"
        )
    return None if chosen == count else Groups(count=count, chosen=chosen, best=best)


def sigmoid_routing(c: ModelConfig) -> TopK:
    """DeepSeek V3's."""
    return TopK(
        score=Score.SIGMOID,
        normalize=1.0 if c.norm_topk_prob else None,
        scale=float(c.routed_scaling_factor),
        corrected=True,
        groups=expert_groups(c, best=2),
    )


def extra_layers(c: ModelConfig) -> tuple[str, ...]:
    """Patterns of the layers after the last, which predict further tokens and are not used."""
    last = c.size("num_hidden_layers")
    return tuple(f".layers.{last + index}.*" for index in range(c.num_nextn_predict_layers or 0))


def glm4_moe(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, size = RmsNorm(eps=c.rms_norm_eps), c.size("moe_intermediate_size")
    qk_norm = HeadNorm(norm=norm) if c.use_qk_norm else None
    heads, plain = attention(c, rotary(c), qk_norm=qk_norm, qkv_bias=c.attention_bias), gated_mlp(c, c.hidden_act)
    shared = replace(plain, size=size * c.size("n_shared_experts"))
    moe = mixture(c, size, routing=sigmoid_routing(c), shared=shared)
    blocks = [moe if index >= c.first_k_dense_replace else plain for index in range(c.size("num_hidden_layers"))]
    names = replace(NAMES, moe=SHARED_EXPERTS, ignored=(*NAMES.ignored, *extra_layers(c)))
    return decoder(c, [Layer(attention=heads, mlp=mlp, norm=norm) for mlp in blocks], norm), names


def ernie_moe(c: ModelConfig) -> tuple[Decoder, Names]:
    norm, bias = RmsNorm(eps=c.rms_norm_eps), bool(c.use_bias)
    heads = attention(c, replace(rotary(c), interleaved=True), qkv_bias=bias, out_bias=bias)
    plain, size = gated_mlp(c, c.hidden_act, bias=bias), c.size("moe_intermediate_size")
    shared: Mlp | None = None
    if c.moe_num_shared_experts:
        shared = replace(plain, size=size * c.size("moe_num_shared_experts"))
    moe = mixture(c, size, routing=TopK(normalize=1.0, corrected=True), shared=shared)
    first, last, step = c.moe_layer_start_index, c.moe_layer_end_index, c.size("moe_layer_interval")
    count = c.size("num_hidden_layers")
    mixed = [(index + 1) % step == 0 and first <= index <= (last if last >= 0 else count) for index in range(count)]
    layers = [Layer(attention=heads, mlp=moe if here else plain, norm=norm) for here in mixed]
    experts = replace(SHARED_EXPERTS, correction="mlp.moe_statics.e_score_correction_bias", correction_is_row=True)
    names = replace(NAMES, moe=experts, ignored=(*NAMES.ignored, ".mtp_*"))
    return decoder(c, layers, norm, head_bias=bias), names


COMMON = DEFAULTS | {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
GLM4_MOE = Architecture(
    glm4_moe,
    COMMON
    | {
        "partial_rotary_factor": 0.5,
        "use_qk_norm": False,
        "num_nextn_predict_layers": 1,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
)
ERNIE_MOE = Architecture(
    ernie_moe,
    COMMON
    | {
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "use_bias": False,
        "num_local_experts": 64,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1536,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
)
