"""Families without a spec, which only transformers' own code computes: over pages, or with a cache per sequence."""

from __future__ import annotations

from .case import Case

NEXT = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

CASES: dict[str, Case] = {
    "biogpt": Case("biogpt", {"intermediate_size": 96}, native=False, ranks=(1,)),
    "qwen3-next": Case("qwen3_next", NEXT, native=False, ranks=(1,), note="recurrent layers"),
    "rwkv": Case("rwkv", {"attention_hidden_size": 64}, reference="eager", native=False, ranks=(1,)),
    "xglm": Case("xglm", {"ffn_dim": 96}, reference="eager", native=False, ranks=(1,)),
}
