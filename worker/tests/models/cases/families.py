"""Families of decoders with one plain or gated MLP per layer, beyond those of `dense`."""

from __future__ import annotations

from .case import GATED, Case

ONE_KV = GATED | {"num_key_value_heads": 1}
MHA = GATED | {"num_key_value_heads": 4}
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
PLAIN = {"intermediate_size": 96}
FACTORS = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2}
OPT_350M = {
    "do_layer_norm_before": False,
    "word_embed_proj_dim": 48,
    "ffn_dim": 120,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
GALACTICA = {"activation_function": "gelu", "enable_bias": False}
WIDE_HEADS = {"head_dim": 32}
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention", "sliding_attention"]
ALTERNATING = GATED | {"sliding_window": 9}
NO_WINDOWS = {"sliding_window": None, "layer_types": ["full_attention"] * 3}
ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0}
GROWING = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.3,
}
GEMMA3 = GATED | WIDE_HEADS | {"sliding_window": 18, "query_pre_attn_scalar": 20, "num_hidden_layers": 4}

CASES = {
    "gemma": Case("gemma", ONE_KV | WIDE_HEADS),
    "gemma3": Case("gemma3_text", GEMMA3 | {"layer_types": LOCAL_AND_GLOBAL, "num_hidden_layers": 3}),
    "vaultgemma": Case("vaultgemma", GEMMA3 | {"final_logit_softcapping": 3.0}, reference="eager"),
    "phi": Case("phi", PLAIN | {"num_key_value_heads": 2}),
    "phi, normed heads": Case("phi", PLAIN | {"qk_layernorm": True, "hidden_act": "gelu", "num_hidden_layers": 2}),
    "phi3": Case("phi3", GATED | {"sliding_window": 20}),
    "phi3, partial, tied": Case("phi3", MHA | TIED | {"partial_rotary_factor": 0.5}),
    "persimmon": Case("persimmon", PLAIN),
    "persimmon, plain heads": Case("persimmon", PLAIN | {"qk_layernorm": False, "hidden_act": "gelu_new"}),
    "gpt-j": Case("gptj", {"rotary_dim": 8}, reference="eager"),
    "gpt-bigcode": Case("gpt_bigcode"),
    "gpt-bigcode, a K and V per head": Case("gpt_bigcode", {"multi_query": False, "n_inner": 80}),
    "starcoder2": Case("starcoder2", GATED | UNTIED | {"sliding_window": 9}),
    "starcoder2, no biases": Case("starcoder2", ONE_KV | {"use_bias": False}),
    "bloom": Case("bloom", reference="eager"),
    "bloom, 6 heads": Case("bloom", UNTIED | {"hidden_size": 96, "num_attention_heads": 6}, reference="eager"),
    "mpt": Case("mpt", {"attn_config": {"clip_qkv": 0.7}}, reference="eager"),
    "mpt, 6 heads": Case(
        "mpt", {"hidden_size": 96, "num_attention_heads": 6, "attn_config": {"softmax_scale": 0.3}}, reference="eager"
    ),
    # Without rotation a bias of keys moves all scores of a query alike.
    "opt": Case("opt", {"ffn_dim": 96}, inert=("*.k_proj.bias",)),
    "opt, 350m style": Case("opt", OPT_350M, inert=("*.k_proj.bias",)),
    "opt, galactica style": Case("opt", GALACTICA | {"ffn_dim": 96}),
    "cohere": Case("cohere", GATED | {"attention_bias": True}),
    "cohere, normed heads": Case("cohere", ONE_KV | {"use_qk_norm": True, "logit_scale": 0.25}),
    "cohere2": Case("cohere2", GATED | {"sliding_window": 9, "sliding_window_pattern": 2}),
    "granite": Case("granite", GATED | FACTORS),
    "granite, tied, biased": Case("granite", ONE_KV | FACTORS | TIED | {"attention_bias": True, "mlp_bias": True}),
    "stablelm": Case("stablelm", GATED | {"use_qkv_bias": True}),
    "stablelm, parallel, normed heads": Case(
        "stablelm", GATED | {"use_parallel_residual": True, "qk_layernorm": True, "partial_rotary_factor": 0.5}
    ),
    "olmo": Case("olmo", GATED | {"clip_qkv": 0.7}),
    "olmo2": Case("olmo2", GATED, thorough=True),
    "olmo2, one KV head": Case("olmo2", ONE_KV | TIED),
    "olmo3": Case("olmo3", ALTERNATING | {"num_hidden_layers": 4}),
    "smollm3": Case("smollm3", GATED | {"no_rope_layer_interval": 2}),
    "glm": Case("glm", GATED | WIDE_HEADS),
    "glm4": Case("glm4", ONE_KV | WIDE_HEADS | {"attention_bias": False}),
    "exaone4": Case("exaone4", GATED | {"sliding_window": 9, "sliding_window_pattern": 2}),
    "exaone4, no windows": Case("exaone4", GATED | TIED | NO_WINDOWS | {"head_dim": 24}),
    "nemotron": Case("nemotron", GATED | {"mlp_bias": True, "attention_bias": True}),
    "arcee": Case("arcee", ONE_KV | WIDE_HEADS),
    "ministral": Case("ministral", ALTERNATING | {"layer_types": LOCAL_AND_GLOBAL, "head_dim": 16}),
    "ministral 3": Case("ministral3", GATED | {"head_dim": 32, "rope_parameters": GROWING}),
    "seed-oss": Case("seed_oss", GATED | WIDE_HEADS | {"attention_out_bias": True}),
    "ernie 4.5": Case("ernie4_5", GATED | WIDE_HEADS | {"use_bias": True}),
    "helium": Case("helium", ONE_KV | {"head_dim": 16}),
    "hunyuan, dense, fixed alpha": Case("hunyuan_v1_dense", GATED | {"head_dim": 16, "rope_parameters": ALPHA}),
    "hunyuan, dense": Case("hunyuan_v1_dense", GATED | WIDE_HEADS),
}
