"""The frequencies of rotary embeddings, with the ways to stretch them over longer contexts.

At position 32,768 one unit in the last place of a frequency is a thousandth of a turn: every formula is written in the
order in which models were trained with it, in float32.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from millrace_worker.attention.rotary import RotaryTable, SwitchedRotaryTable
from millrace_worker.models.scaling import (
    DynamicScaling,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    YarnScaling,
)
from millrace_worker.models.spec import Rotary


def rotary_table(
    rotary: Rotary, max_positions: int, dtype: torch.dtype, device: torch.device
) -> RotaryTable | SwitchedRotaryTable:
    """Cosines and sines of every position below `max_positions`."""
    scaling = rotary.scaling
    if not isinstance(scaling, LongScaling):
        return _table(rotary, max_positions, dtype, device)
    original = scaling.original_max_positions
    short = _table(replace(rotary, scaling=scaling.short), min(original, max_positions), dtype, device)
    long = _table(replace(rotary, scaling=scaling.long), max_positions, dtype, device)
    return SwitchedRotaryTable(short, long, original)


def _table(rotary: Rotary, max_positions: int, dtype: torch.dtype, device: torch.device) -> RotaryTable:
    def angles(positions_P: Tensor) -> Tensor:
        return positions_P[:, None].float() * frequencies(rotary, positions_P)

    amplitude = rotary.scaling.amplitude if isinstance(rotary.scaling, YarnScaling | FactorScaling) else 1.0
    return RotaryTable(angles, rotary.dim, max_positions, amplitude, dtype=dtype, device=device)


def frequencies(rotary: Rotary, positions_P: Tensor) -> Tensor:
    """[1 or P, dim / 2] float32, radians per position: theta ** (-2 i / dim), scaled; where the positions are."""
    exponents = torch.arange(0, rotary.dim, 2, device=positions_P.device).float() / rotary.dim
    plain = 1.0 / rotary.theta**exponents
    match rotary.scaling:
        case None:
            return plain[None]
        case LinearScaling(factor=factor):
            return plain[None] / factor
        case DynamicScaling() as scaling:
            return 1.0 / _dynamic_base(rotary, scaling, positions_P)[:, None] ** exponents
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling)[None]
        case YarnScaling() as scaling:
            return _yarn(rotary, exponents, scaling)[None]
        case FactorScaling(factors=factors):
            return 1.0 / (torch.tensor(factors, device=plain.device) * rotary.theta**exponents)[None]
        case LongScaling():
            raise TypeError("which of its two sets of frequencies a token takes depends on the sequence: rotary_table")


def _dynamic_base(rotary: Rotary, scaling: DynamicScaling, positions_P: Tensor) -> Tensor:
    """[P] float32: theta * (factor * n / original - (factor - 1)) ** (dim / (dim - 2)) of a sequence of n tokens."""
    lengths = (positions_P + 1).clamp(min=scaling.original_max_positions)
    growth = scaling.factor * lengths / scaling.original_max_positions - (scaling.factor - 1)
    return rotary.theta * (growth.double() ** (rotary.dim / (rotary.dim - 2))).float()


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Turns per original context: above `high_freq_factor` kept, below `low_freq_factor` divided by `factor`, between
    them blended linearly (Llama 3.1's reference code). Llama 4 Scout has one factor for both, and nothing between."""
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    above, band = turns - scaling.low_freq_factor, scaling.high_freq_factor - scaling.low_freq_factor
    kept = (above / band).clamp(0.0, 1.0) if band else (above > 0).float()
    return kept * plain + (1.0 - kept) * plain / scaling.factor


def _yarn(rotary: Rotary, exponents: Tensor, scaling: YarnScaling) -> Tensor:
    """The ramp goes over pairs of dimensions, between the one that turns `beta_fast` times within the original context
    and the one that turns `beta_slow` times (YaRN's reference code)."""
    first, last = (_pair_of_turns(rotary, scaling, turns) for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary.dim - 1)
    pairs = torch.arange(rotary.dim // 2, dtype=torch.float32, device=exponents.device)
    stretched = ((pairs - first) / (last - first or 0.001)).clamp(0.0, 1.0)
    kept = 1 - stretched
    wavelengths = rotary.theta**exponents
    return 1.0 / (scaling.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept


def _pair_of_turns(rotary: Rotary, scaling: YarnScaling, turns: float) -> float:
    """Which pair of dimensions, as a real number, turns so often within the original context."""
    wavelength = scaling.original_max_positions / (turns * 2 * math.pi)
    return rotary.dim * math.log(wavelength) / (2 * math.log(rotary.theta))
