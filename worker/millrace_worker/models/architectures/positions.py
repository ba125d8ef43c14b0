"""A configuration's rotary positions, and how far they reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.scaling import (
    DynamicScaling,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Scaling,
    Stretch,
    YarnScaling,
)
from millrace_worker.models.spec import Decoder, Layer, Rotary


def rotary(c: ModelConfig, head_dim: int, layer_type: str | None = None) -> Rotary:
    """The rotation of heads of `head_dim` dimensions, in layers of `layer_type` where the family tells them apart.

    Raises ConfigError for a kind of scaling that is not implemented, or whose parameters are missing or wrong.
    """
    rope = c.rope_parameters(layer_type)
    theta, share = _number(rope, "rope_theta"), _number(rope, "partial_rotary_factor")
    dim = int(head_dim * share)
    if share > 1 or dim < 2 or dim % 2:
        raise ConfigError(
            f"config.json: `partial_rotary_factor` {share} of {head_dim} dimensions is no number of pairs"
        )
    return Rotary(theta=theta, dim=dim, scaling=_scaling(c, rope, dim))


def longest(max_position_embeddings: int, layers: Iterable[Layer]) -> int:
    """How many positions the model can tell apart: what the configuration says, or what it is stretched to."""
    scalings = [layer.attention.position.scaling for layer in layers if isinstance(layer.attention.position, Rotary)]
    return min((_reach(max_position_embeddings, scaling) for scaling in scalings), default=max_position_embeddings)


def stretched(c: ModelConfig, spec: Decoder | Recurrent, by: Stretch) -> Decoder:
    """The model with its positions stretched in another way than its configuration says.

    Raises ConfigError where that makes no sense: no rotary positions, LongRoPE's two sets, or layers that differ.
    """
    found = {layer.attention.position for layer in spec.layers} if isinstance(spec, Decoder) else set()
    if not isinstance(spec, Decoder) or len(found) != 1 or not isinstance(position := next(iter(found)), Rotary):
        raise ConfigError(
            "--rope-scaling stretches rotary positions that are the same in all layers; this model's are not"
        )
    if isinstance(position.scaling, LongScaling):
        raise ConfigError("--rope-scaling cannot replace the rope type longrope of this model's config.json")
    stated = _stated(c)
    scaling = (
        LinearScaling(factor=by.factor)
        if by.kind == "linear"
        else DynamicScaling(factor=by.factor, original_max_positions=stated)
    )
    turned = replace(position, scaling=scaling)
    layers = tuple(replace(each, attention=replace(each.attention, position=turned)) for each in spec.layers)
    return replace(spec, layers=layers, max_positions=_reach(stated, scaling))


def _reach(stated: int, scaling: Scaling | None) -> int:
    """Linear and dynamic scaling stretch what is stated; other types state the stretched length, most of the time."""
    match scaling:
        case LinearScaling(factor=factor) | DynamicScaling(factor=factor):
            return max(stated, int(stated * factor))
        case YarnScaling(factor=factor, original_max_positions=original):
            return max(stated, int(original * factor))
        case _:
            return stated


def _scaling(c: ModelConfig, rope: Mapping[str, Any], dim: int) -> Scaling | None:
    if "short_factor" in rope:  # Phi-3's first configurations call theirs "su" or "yarn"
        return _longrope(c, rope, dim)
    if rope["rope_type"] not in READERS:
        raise UnsupportedError(
            f"config.json: rope type {rope['rope_type']!r} is not implemented ({', '.join(READERS)} are)"
        )
    return READERS[rope["rope_type"]](c, rope, dim)


def _unscaled(*_: Any) -> None:
    return None


def _linear(_: ModelConfig, rope: Mapping[str, Any], __: int) -> LinearScaling:
    return LinearScaling(factor=_number(rope, "factor"))


def _dynamic(c: ModelConfig, rope: Mapping[str, Any], dim: int) -> DynamicScaling:
    if dim < 4:
        raise ConfigError(f"config.json: rope type 'dynamic' needs 4 rotated dimensions or more, not {dim}")
    return DynamicScaling(factor=_number(rope, "factor"), original_max_positions=_stated(c))


def _llama3(c: ModelConfig, rope: Mapping[str, Any], _: int) -> Llama3Scaling:
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    if high < low:
        raise ConfigError(f"config.json: `high_freq_factor` {high} must not be below `low_freq_factor` {low}")
    original, factor = _original(c, rope), _number(rope, "factor")
    return Llama3Scaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_positions=original)


def _yarn(c: ModelConfig, rope: Mapping[str, Any], _: int) -> YarnScaling:
    original = _original(c, rope)
    factor = _number(rope, "factor", _stated(c) / original)
    mscale, mscale_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is not None:
        amplitude = _number(rope, "attention_factor")
    elif mscale and mscale_all:
        amplitude = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all)
    else:
        amplitude = yarn_magnitude(factor)
    truncate = rope.get("truncate")
    return YarnScaling(
        factor=factor,
        original_max_positions=original,
        beta_fast=_number(rope, "beta_fast", 32.0) if rope.get("beta_fast") else 32.0,
        beta_slow=_number(rope, "beta_slow", 1.0) if rope.get("beta_slow") else 1.0,
        truncate=True if truncate is None else bool(truncate),
        amplitude=amplitude,
    )


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """By how much YaRN raises queries and keys of a context stretched by `factor` (0.1 ln(factor) + 1)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(c: ModelConfig, rope: Mapping[str, Any], dim: int) -> LongScaling:
    original = _original(c, rope)
    factor = _number(rope, "factor", _stated(c) / original)
    inferred = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    amplitude = _number(rope, "attention_factor", inferred)
    return LongScaling(
        short=FactorScaling(factors=_factors(rope, "short", dim), amplitude=_number(rope, "short_mscale", amplitude)),
        long=FactorScaling(factors=_factors(rope, "long", dim), amplitude=_number(rope, "long_mscale", amplitude)),
        original_max_positions=original,
    )


def _factors(rope: Mapping[str, Any], which: str, dim: int) -> tuple[float, ...]:
    """One for each pair of dimensions."""
    name = f"{which}_factor"
    factors = rope.get(name)
    if not isinstance(factors, list) or len(factors) != dim // 2 or not all(_is_positive(each) for each in factors):
        told = f"{len(factors)} values" if isinstance(factors, list) else repr(factors)
        raise ConfigError(
            f"config.json: rope type 'longrope' needs `{name}`, a list of {dim // 2} positive numbers, not {told}"
        )
    return tuple(map(float, factors))


def _stated(c: ModelConfig) -> int:
    return c.size("max_position_embeddings")


def _original(c: ModelConfig, rope: Mapping[str, Any]) -> int:
    """The context that the model was first trained on. Phi-3 states it beside the parameters, and there it counts."""
    name = "original_max_position_embeddings"
    stated = c.get(name) or rope.get(name) or _stated(c)
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < 2:
        raise ConfigError(f"config.json: `{name}` must be a whole number above 1, not {stated!r}")
    return stated


def _number(rope: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = rope.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise ConfigError(f"config.json: rope type {rope['rope_type']!r} needs the parameter `{name}`")
    if not _is_positive(value):
        raise ConfigError(f"config.json: the rope parameter `{name}` must be a positive number, not {value!r}")
    return float(value)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


# With text alone all axes of "mrope" have the same position, and it is the default type.
READERS: Mapping[str, Callable[[ModelConfig, Mapping[str, Any], int], Scaling | None]] = {
    "default": _unscaled,
    "mrope": _unscaled,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
}
