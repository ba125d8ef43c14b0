"""A model says how far back it reads, and from which length on it computes otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from millrace_worker.model import Reach
from millrace_worker.models.reach import reach_of

from .test_rotary_scaling import SIZES, decoder_of, values

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 24}


@pytest.mark.parametrize(
    ("config", "reach"),
    [
        (SIZES | {"architectures": ["LlamaForCausalLM"]}, Reach()),
        (SIZES | {"architectures": ["MistralForCausalLM"], "sliding_window": 24}, Reach(attention_window=24)),
        (SIZES | {"architectures": ["MistralForCausalLM"], "sliding_window": None}, Reach()),
        (SIZES | QWEN2 | {"max_window_layers": 0}, Reach(attention_window=24)),
        (SIZES | QWEN2 | {"max_window_layers": 1}, Reach()),  # one layer reads everything
        (values("longrope") | {"architectures": ["LlamaForCausalLM"]}, Reach(position_switch=4096)),
        (
            values("longrope") | {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096},
            Reach(),  # no sequence is that long
        ),
    ],
)
def test_what_length_changes(config: dict[str, Any], reach: Reach) -> None:
    assert reach_of(decoder_of(config)) == reach
