"""Llama with every kind of rotary scaling, its original context shorter than the sequences.

`dynamic` is not here: transformers computes it by the length of a whole prompt, see test_rotary_scaling.py.
"""

from __future__ import annotations

from typing import Any

from .case import GATED, Case


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return GATED | {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | parameters}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 40}
YARN = {"factor": 4.0, "original_max_position_embeddings": 40}
LONG = {  # for 16 dimensions; sequences of up to 20 tokens are short ones
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.3, 2.0, 3.0, 4.5, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 20,
}

CASES = {
    "llama, linear rope": Case("llama", _rope("linear", factor=4.0)),
    "llama, 3.1 rope": Case("llama", _rope("llama3", factor=4.0, **LLAMA3)),
    "llama, yarn": Case("llama", _rope("yarn", **YARN)),
    "llama, longrope": Case("llama", _rope("longrope", factor=8.0, **LONG), backend=False),
}
