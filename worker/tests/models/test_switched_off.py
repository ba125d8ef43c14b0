"""Every part of a spec matters: with any one of them at its neutral value, the logits are not those of transformers.

What is neutral is the default of each field of the spec, so that a kind that is new takes part by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from millrace_worker.distributed import Group
from millrace_worker.models import load
from millrace_worker.models.architectures import describe, describe_encoder_decoder
from millrace_worker.models.checkpoint import Checkpoint
from millrace_worker.models.encoder_decoder import load as encoder_decoder
from millrace_worker.models.hf_config import ModelConfig

from .cases import CASES, NATIVE
from .checkpoints import Saved
from .paged import run
from .parity import TOLERANCE

CLEARLY = 10 * TOLERANCE
# Of fields that have no default: what is less than they say.
LESS: dict[str, Callable[[Any], Any]] = {
    "position": lambda _: None,
    "top_k": lambda count: count - 1 or count,
}


def neutral(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """`value` with one of its parts, at any depth, at its neutral value; each with the path of that part."""
    for field in fields(value):
        at, now = f"{path}{field.name}", getattr(value, field.name)
        off = LESS[field.name](now) if field.name in LESS else field.default
        if off is not MISSING and off != now:
            yield at, replace(value, **{field.name: off})
        if is_dataclass(now):
            yield from ((inner, replace(value, **{field.name: part})) for inner, part in neutral(now, f"{at}."))
        elif isinstance(now, tuple) and now and is_dataclass(now[0]):
            yield from ((inner, replace(value, **{field.name: parts})) for inner, parts in neutral_in_all(now, at))


def neutral_in_all(parts: tuple[Any, ...], path: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The same part in every layer that has it."""
    changed = [dict(neutral(part, f"{path}.")) for part in parts]
    for at in dict.fromkeys(name for each in changed for name in each):
        yield at, tuple(each.get(at, part) for each, part in zip(changed, parts, strict=True))


@pytest.mark.parametrize("case", NATIVE)
def test_what_is_switched_off_is_missed(
    case: str, saved: Callable[[str], Saved], sequences: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it cannot be switched off: the checkpoint does not fit then."""
    reference, tokens = saved(case), sequences[-1]
    config, prompts = ModelConfig.read(reference.folder), reference.prompts([tokens])
    spec, names = (describe_encoder_decoder if reference.has_encoder else describe)(config)
    expected = reference.logits(tokens, prompts.get(0))
    monkeypatch.setattr(Checkpoint, "check_all_read", lambda *_: None)
    whole = logits(reference, spec, names, tokens, monkeypatch)
    assert whole is not None
    near = (whole - expected)[: reference.num_clear(tokens)].abs() <= CLEARLY
    assert near.all(), "with nothing switched off"
    unmissed = {}
    for path, changed in neutral(spec):
        found = logits(reference, changed, names, tokens, monkeypatch)
        difference = torch.inf if found is None else float((found - expected).abs().max())
        if difference <= CLEARLY:
            unmissed[path] = difference
    assert set(unmissed) == set(CASES[case].unmissed), unmissed


def logits(
    reference: Saved, spec: object, names: object, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor | None:
    """None: it does not load."""
    monkeypatch.setattr(load, "describe", lambda *_: (spec, names))
    monkeypatch.setattr(encoder_decoder, "describe_encoder_decoder", lambda *_: (spec, names))
    try:
        model = load.load_native(reference.folder, dtype=torch.float32, device=torch.device("cpu"), group=Group())
    except Exception:  # whatever says that it does not fit
        return None
    (found,) = run(model, seed=3).logits([tokens], reference.prompts([tokens]))
    return found


def test_a_part_is_found_at_any_depth(saved: Callable[[str], Saved]) -> None:
    spec, _ = describe(ModelConfig.read(saved("gemma2, window 18").folder))
    assert {"layers.attention.window", "layers.attention.softcap", "layers.post_norm", "embed_scale"} <= {
        path for path, _ in neutral(spec)
    }
