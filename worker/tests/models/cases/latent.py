"""Latent attention (DeepSeek), and encoders with decoders."""

from __future__ import annotations

from typing import Any

from .case import Case

LATENT = {
    "intermediate_size": 96,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
# Chunks find it cheaper to make keys and values of these.
WIDE_LATENT = {"kv_lora_rank": 64, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}

GROUPS = {"n_group": 4, "topk_group": 2}

# The two factors differ: one multiplies rotations, the other scores.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 40,
    "mscale": 0.6,
    "mscale_all_dim": 0.9,
}

# An encoder of three layers, a decoder of two.
T5 = {
    "d_kv": 24,
    "d_ff": 96,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 3,
    "dropout_rate": 0.0,
}
MT5 = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
# A scale of 1 is none. FLAN-T5 is 1.1.
WHOLLY_OURS: dict[str, Any] = {
    "backend": False,
    "unmissed": ("attention.scale",),
    "note": "an encoder and a decoder, FLAN too",
}

CASES: dict[str, Case] = {
    "deepseek-v2": Case(
        "deepseek_v2",
        LATENT | GROUPS | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 3.0, "n_shared_experts": 2},
    ),
    "deepseek-v2, lite": Case("deepseek_v2", LATENT | {"q_lora_rank": None, "v_head_dim": 40}),
    "deepseek-v3": Case("deepseek_v3", LATENT | WIDE_LATENT | GROUPS, ranks=(1, 2, 4)),
    "deepseek-v3, halves, biased": Case(
        "deepseek_v3",
        LATENT | GROUPS | {"rope_interleave": False, "attention_bias": True, "norm_topk_prob": False},
    ),
    "t5": Case("t5", T5 | {"feed_forward_proj": "relu"}, **WHOLLY_OURS),
    "t5, 1.1": Case("t5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, **WHOLLY_OURS),
    "t5, 1.1, 97 columns": Case("t5", T5 | {"feed_forward_proj": "gated-silu", "d_ff": 97}, **WHOLLY_OURS),
    "mt5": Case("mt5", T5 | MT5, **WHOLLY_OURS),
    "deepseek-v2, lite, yarn": Case("deepseek_v2", LATENT | {"q_lora_rank": None, "rope_parameters": YARN}),
}
