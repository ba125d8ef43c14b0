"""The frequencies of rotary embeddings, with the ways to stretch them over longer contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from millrace_worker.models.spec import LinearScaling, Llama3Scaling, Rotary


def frequencies(rotary: Rotary) -> Tensor:
    """[dim / 2] float32, radians per position: theta ** (-2 i / dim), scaled."""
    plain = 1.0 / rotary.theta ** (torch.arange(0, rotary.dim, 2).float() / rotary.dim)
    match rotary.scaling:
        case None:
            return plain
        case LinearScaling(factor=factor):
            return plain / factor
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Turns per original context: above `high_freq_factor` kept, below `low_freq_factor` divided by `factor`, between
    them blended linearly (Llama 3.1's reference code)."""
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return kept * plain + (1.0 - kept) * plain / scaling.factor
