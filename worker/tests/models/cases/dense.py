"""Decoders with one plain or gated MLP per layer."""

from __future__ import annotations

from .case import GATED, WIDE, Case

WIDE_HEADS = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 24}
GEMMA2 = {"head_dim": 16, "sliding_window": 18, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 4.0}
FALCON_RW = {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}

CASES = {
    "llama": Case("llama", GATED, thorough=True, ranks=(1, 2, 4)),
    "llama, tied, biased, wide heads": Case("llama", GATED | WIDE_HEADS),
    "llama, 97 columns of the MLP": Case("llama", GATED | {"intermediate_size": 97}, ranks=(1, 2, 4)),
    "llama, packed": Case("llama", GATED | WIDE | {"intermediate_size": 704}, thorough=True),
    "mistral, window 9": Case("mistral", GATED | {"sliding_window": 9}, thorough=True),
    "mistral, no window": Case("mistral", GATED | {"sliding_window": None}),
    "qwen2": Case("qwen2", GATED),
    "qwen2, windows": Case("qwen2", GATED | {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": Case("qwen3", GATED | {"head_dim": 32}, thorough=True),
    "gemma2, window 18": Case("gemma2", GATED | GEMMA2, reference="eager", thorough=True),
    "gpt2": Case("gpt2", thorough=True, ranks=(1, 2, 4), unmissed=("layers.attention.scale",)),
    "gpt2, scaled by layer": Case("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 80}),
    "gpt2, packed": Case("gpt2", WIDE, unmissed=("layers.attention.scale",)),
    "gpt-neox, parallel": Case("gpt_neox", {"intermediate_size": 96}),
    "gpt-neox, sequential": Case("gpt_neox", {"intermediate_size": 96, "use_parallel_residual": False}),
    "gpt-neox, packed": Case("gpt_neox", WIDE | {"intermediate_size": 640}, thorough=True),
    "falcon, 7B style": Case("falcon", ranks=(1, 2, 4)),
    "falcon, 40B style": Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, RW style": Case("falcon", FALCON_RW, thorough=True),
    "falcon, RW style, 6 heads": Case("falcon", FALCON_RW | {"hidden_size": 96, "num_attention_heads": 6}),
}
