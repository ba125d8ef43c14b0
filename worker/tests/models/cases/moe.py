"""Mixtures of experts."""

from __future__ import annotations

from typing import Any

from .case import GATED, Case

EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
QWEN = GATED | EXPERTS | {"moe_intermediate_size": 48, "num_experts": 6}
SHARED = {"shared_expert_intermediate_size": 80, "decoder_sparse_step": 1}
GLM = GATED | EXPERTS | {"moe_intermediate_size": 48, "n_routed_experts": 8, "n_shared_experts": 2}
GLM |= {"head_dim": 32, "use_qk_norm": True, "routed_scaling_factor": 1.7}
ERNIE = GATED | {"moe_k": 2, "moe_num_experts": 6, "moe_intermediate_size": 48, "moe_num_shared_experts": 1}
ERNIE |= {"moe_layer_interval": 2}
GRANITE = GATED | EXPERTS | {"num_local_experts": 5, "embedding_multiplier": 3.0, "logits_scaling": 0.5}
GRANITE |= {"residual_multiplier": 0.7, "attention_multiplier": 0.2}
DBRX = {
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.5, "rope_theta": 10000.0},
    "ffn_config": {
        "ffn_hidden_size": 48,
        "moe_num_experts": 6,
        "moe_top_k": 3,
        "moe_normalize_expert_weights": 2.0,
    },
}
DBRX_ODD = DBRX | {"ffn_config": DBRX["ffn_config"] | {"ffn_hidden_size": 45}}
GPT_OSS = GATED | EXPERTS | {"num_local_experts": 5, "head_dim": 32, "sliding_window": 9, "swiglu_limit": 0.7}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 40}
GPT_OSS |= {"rope_parameters": YARN | {"truncate": False, "beta_fast": 8.0, "beta_slow": 1.0}}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_mscale": 1.1, "long_mscale": 1.3}
LONG |= {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i / 4 for i in range(8)]}
LONG |= {"original_max_position_embeddings": 80, "factor": 2.0}
LLAMA4 = GATED | EXPERTS | {"num_local_experts": 5, "head_dim": 32, "intermediate_size_mlp": 80}
LLAMA4 |= {"attention_chunk_size": 16, "floor_scale": 5, "no_rope_layers": [1, 0, 1], "moe_layers": [0, 2]}

CASES = {
    "mixtral": Case("mixtral", GATED | EXPERTS | {"num_local_experts": 5}, thorough=True),
    "phimoe": Case(
        "phimoe",
        GATED | EXPERTS | {"num_local_experts": 6, "router_jitter_noise": 0.2, "lm_head_bias": True},
        unmissed=("layers.mlp.top_k",),  # always two
    ),
    "phimoe, windows and biases": Case(
        "phimoe",
        GATED
        | EXPERTS
        | {"num_local_experts": 4, "sliding_window": 9, "attention_bias": True, "rope_parameters": LONG},
        unmissed=("layers.mlp.top_k",),
    ),
    "dbrx": Case("dbrx", DBRX),
    "dbrx, 45 columns of each expert": Case("dbrx", DBRX_ODD, ranks=(1, 2, 4), backend=False),
    "qwen2-moe": Case("qwen2_moe", QWEN | SHARED, thorough=True, ranks=(1, 2, 4)),
    "qwen2-moe, normalized, alternating": Case(
        "qwen2_moe", QWEN | SHARED | {"norm_topk_prob": True, "decoder_sparse_step": 2}
    ),
    "qwen3-moe": Case("qwen3_moe", QWEN | {"head_dim": 32, "mlp_only_layers": [1]}),
    "olmoe": Case("olmoe", GATED | EXPERTS | {"num_experts": 8, "clip_qkv": 2.0}),
    "granite-moe": Case("granitemoe", GRANITE),
    "granite-moe, shared": Case("granitemoeshared", GRANITE | {"shared_intermediate_size": 80}),
    "glm4-moe": Case("glm4_moe", GLM),
    "glm4-moe, groups": Case("glm4_moe", GLM | {"n_group": 4, "topk_group": 2}, thorough=True),
    "gpt-oss": Case("gpt_oss", GPT_OSS, reference="eager", thorough=True),
    "llama4": Case("llama4_text", LLAMA4, thorough=True, unmissed=("layers.attention.qk_norm.after_rotation",)),
    "llama4, one expert, all layers": Case(
        "llama4_text",
        GATED | {"num_local_experts": 4, "head_dim": 16, "use_qk_norm": False, "attn_temperature_tuning": False},
        unmissed=("layers.attention.chunk",),
    ),
    "ernie-moe": Case("ernie4_5_moe", ERNIE),
}
