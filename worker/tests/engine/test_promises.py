"""What `Prepare` promises: no step of any kind of model takes more, beside its store, than the workspaces it names.

Kinds that differ in what a step makes: scores, contexts, experts, latents, windows, caps, states in rows, encoders, a
library's own operators. Trials are shortened and scaled, as they are for models that take long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from worker.tests.models.cases import CASES

SHORTENED = {"flops": 1e8, "scores": 1 << 17}
ASKED = {"max_top_n_tokens": 5, "prompt_logprobs": True, "pool": 1 << 25, "implementation": "native", "kernels": ""}
OFF = {"kernels": "off"}
LARGE = {"hidden_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 8192, "tie_word_embeddings": True}


def sized(rows: int, step_tokens: int, sequence_tokens: int) -> dict[str, int]:
    return {"max_rows": rows, "max_step_tokens": step_tokens, "max_sequence_tokens": sequence_tokens}


# The case of the parity tests, what is larger in it, what is asked.
KINDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"vocab_size": 40_000, "intermediate_size": 256}, sized(24, 256, 1024)),
    ("llama", {"vocab_size": 500, "intermediate_size": 256}, sized(8, 1024, 8192) | OFF),
    ("llama", {"vocab_size": 20_000, "intermediate_size": 256}, sized(16, 512, 2048) | OFF),
    ("mixtral", {"vocab_size": 2000, "intermediate_size": 512}, sized(8, 1024, 2048)),
    ("deepseek-v3", {"vocab_size": 2000, "moe_intermediate_size": 256}, sized(8, 1024, 4096)),
    ("gemma2, window 18", {"vocab_size": 2000, "sliding_window": 256}, sized(8, 1024, 4096)),
    ("gemma2, window 18", {"vocab_size": 2000, "sliding_window": 256}, sized(8, 1024, 8192) | OFF),
    ("t5", {"vocab_size": 500, "num_attention_heads": 8}, sized(2, 256, 4096) | {"pool": 1 << 28}),
    ("mamba2", {"vocab_size": 2000, "head_dim": 32}, sized(8, 1024, 2048)),
    ("llama", {"vocab_size": 2000}, sized(8, 1024, 2048) | {"implementation": "transformers"}),
]


def saved(folder: Path, case: str, over: dict[str, Any]) -> Path:
    """Random weights: what they are does not matter here."""
    model_type = CASES[case].model_type
    names = CONFIG_MAPPING[model_type].attribute_map
    values = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "num_attention_heads": 4}
    values |= {**CASES[case].over, **LARGE, **over}
    config = AutoConfig.for_model(model_type, **{names.get(key, key): value for key, value in values.items()})
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    kind.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def test_no_step_takes_more_than_was_promised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    told = [
        [str(saved(tmp_path / str(index), case, over)), ASKED | SHORTENED | asked]
        for index, (case, over, asked) in enumerate(KINDS)
    ]
    command = [sys.executable, "-m", "worker.tests.engine.promise", json.dumps(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    broken = [
        (case, figures)
        for (case, _, _), figures in zip(KINDS, found, strict=True)
        if not 0 < figures["taken"] <= figures["promised"]
    ]
    assert not broken, broken
