"""Ways to stretch rotary positions over longer contexts than a model was first trained on. Pure data.

"Amplitude" is what cosines and sines are multiplied with, so that scores grow with its square.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions are divided by `factor` (Chen et al. 2023, position interpolation)."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """Beyond the original context the base grows with the position: "dynamic NTK".

    The position p turns with the base that belongs to a sequence of p + 1 tokens, whatever else is known by then: a
    token's key never changes, as when a sequence is computed token by token.
    """

    factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): dimensions that turn more than `beta_fast` times within the original context are kept,
    those that turn less than `beta_slow` times are stretched by `factor`, with a ramp over the dimensions between."""

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    truncate: bool  # the ramp begins and ends at whole dimensions
    amplitude: float


@dataclass(frozen=True, kw_only=True)
class FactorScaling:
    """Each pair of dimensions has a factor of its own."""

    factors: tuple[float, ...]
    amplitude: float


@dataclass(frozen=True, kw_only=True)
class LongScaling:
    """LongRoPE (Ding et al. 2024): a sequence of more than `original_max_positions` tokens turns by `long` at all its
    positions, a shorter one by `short`. One that grows across has to be computed anew."""

    short: FactorScaling
    long: FactorScaling
    original_max_positions: int


@dataclass(frozen=True)
class Stretch:
    """What the operator asks for, instead of what the configuration says: "linear" or "dynamic", by so much."""

    kind: str
    factor: float


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | FactorScaling | LongScaling
