"""Mixtures of experts."""

from __future__ import annotations

from typing import Any

from .case import GATED, Case

EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "initializer_range": 0.2}
QWEN = EXPERTS | {"num_key_value_heads": 2, "intermediate_size": 96, "moe_intermediate_size": 48, "num_experts": 6}
SHARED = {"shared_expert_intermediate_size": 80, "decoder_sparse_step": 1}

CASES = {
    "mixtral": Case("mixtral", GATED | EXPERTS | {"num_local_experts": 5}, thorough=True),
    "qwen2-moe": Case("qwen2_moe", QWEN | SHARED, thorough=True),
    "qwen2-moe, normalized, alternating": Case(
        "qwen2_moe", QWEN | SHARED | {"norm_topk_prob": True, "decoder_sparse_step": 2}
    ),
    "qwen3-moe": Case("qwen3_moe", QWEN | {"head_dim": 32, "mlp_only_layers": [1]}),
}
