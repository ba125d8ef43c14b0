"""The checkpoints that prove parity, a table for each group; an architecture joins with one line."""

from __future__ import annotations

from . import dense, families, hosted, latent, moe, positions, state
from .case import COMMON, POSITIONS, VOCAB, Case

GROUPS = (dense.CASES, families.CASES, moe.CASES, latent.CASES, positions.CASES, state.CASES, hosted.CASES)
CASES: dict[str, Case] = {name: case for group in GROUPS for name, case in group.items()}
assert len(CASES) == sum(map(len, GROUPS)), "two cases share a name"
NATIVE = [name for name, case in CASES.items() if case.native]
THOROUGH = [name for name in NATIVE if CASES[name].thorough]
MIXTURES = {name for name in NATIVE if name in moe.CASES or name in latent.CASES}

__all__ = ["CASES", "COMMON", "MIXTURES", "NATIVE", "POSITIONS", "THOROUGH", "VOCAB", "Case"]
