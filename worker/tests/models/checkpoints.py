"""Tiny random checkpoints of every architecture, made and saved by transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 99  # odd: the last rank's part of the vocabulary is padded
POSITIONS = 160
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GATED = {"intermediate_size": 96, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
# Wide enough that linears are packed and not left plain.
WIDE = {"hidden_size": 256, "num_hidden_layers": 2}
GEMMA2 = {"head_dim": 16, "sliding_window": 18, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 4.0}
FALCON_RW = {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}


@dataclass(frozen=True)
class Case:
    family: str
    over: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama": Case("llama", GATED),
    "llama, tied, biased, wide heads": Case(
        "llama", GATED | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 24}
    ),
    "llama, 3.1 rope": Case("llama", GATED | {"rope_parameters": LLAMA3}),
    "llama, packed": Case("llama", GATED | WIDE | {"intermediate_size": 704}),
    "mistral, window 9": Case("mistral", GATED | {"sliding_window": 9}),
    "mistral, no window": Case("mistral", GATED | {"sliding_window": None}),
    "qwen2": Case("qwen2", GATED),
    "qwen2, windows": Case("qwen2", GATED | {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": Case("qwen3", GATED | {"head_dim": 32}),
    "gemma2, window 18": Case("gemma2", GATED | GEMMA2),
    "gpt2": Case("gpt2"),
    "gpt2, scaled by layer": Case("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 80}),
    "gpt2, packed": Case("gpt2", WIDE),
    "gpt-neox, parallel": Case("gpt_neox", {"intermediate_size": 96}),
    "gpt-neox, sequential": Case("gpt_neox", {"intermediate_size": 96, "use_parallel_residual": False}),
    "gpt-neox, packed": Case("gpt_neox", WIDE | {"intermediate_size": 640}),
    "falcon, 7B style": Case("falcon"),
    "falcon, 40B style": Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, RW style": Case("falcon", FALCON_RW),
    "falcon, RW style, 6 heads": Case("falcon", FALCON_RW | {"hidden_size": 96, "num_attention_heads": 6}),
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk and transformers' model of it, float32."""

    folder: Path
    reference: PreTrainedModel

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """[len, VOCAB]."""
        return self.reference(torch.tensor([tokens])).logits[0]


def save(folder: Path, case: Case) -> Saved:
    """Every parameter is random, norms and biases too: none may be left out unnoticed."""
    values = COMMON | case.over
    if case.family == "gpt2":
        values = {GPT2_NAMES.get(key, key): value for key, value in values.items()}
    config = AutoConfig.for_model(case.family, **values)
    # Soft caps exist only in the eager path; ALiBi is right only in the other (the eager one adds it twice).
    implementation = "eager" if case.family == "gemma2" else "sdpa"
    torch.manual_seed(len(str(case)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=implementation).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    return Saved(folder, model)
