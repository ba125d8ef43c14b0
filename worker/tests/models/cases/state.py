"""Recurrent models: a state in the row instead of pages."""

from __future__ import annotations

from typing import Any

from .case import WIDE, Case

# Two heads for each group; steps that meet both limits.
MAMBA2 = {
    "num_heads": 8,
    "head_dim": 16,
    "n_groups": 4,
    "state_size": 24,
    "time_step_limit": (0.4, 1.5),
    "chunk_size": 16,
}
BIASED = {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}
ONE_GROUP = BIASED | {"n_groups": 1, "tie_word_embeddings": True}
# Their states are not divided over ranks.
WHOLE: dict[str, Any] = {"backend": False, "ranks": (1,), "note": "one rank: states are not divided"}
UNTIED = BIASED | {"tie_word_embeddings": False, "time_step_rank": 5}

CASES = {
    "mamba": Case("mamba", {"state_size": 12}, reference="eager", **WHOLE),
    "mamba, untied, biased": Case("mamba", UNTIED, reference="eager", **WHOLE),
    "mamba, packed": Case("mamba", WIDE, reference="eager", **WHOLE),
    "falcon-mamba": Case("falcon_mamba", reference="eager", **WHOLE),
    "mamba2": Case("mamba2", MAMBA2, reference="eager", **WHOLE),
    "mamba2, tied, biased": Case(
        "mamba2",
        MAMBA2 | ONE_GROUP,
        reference="eager",
        **WHOLE,
    ),
    "mamba2, packed": Case("mamba2", MAMBA2 | WIDE | {"head_dim": 64}, reference="eager", **WHOLE),
}
