"""What the length of a sequence changes in a model: how far back it reads, and where it is computed otherwise."""

from __future__ import annotations

from millrace_worker.model import Reach
from millrace_worker.models.scaling import LongScaling
from millrace_worker.models.spec import Attention, Decoder, Rotary


def reach_of(spec: Decoder) -> Reach:
    """The widest window, if every layer has one."""
    heads = [layer.attention for layer in spec.layers]
    windows = [each.window for each in heads if isinstance(each, Attention) and each.window]
    scalings = [each.position.scaling for each in heads if isinstance(each.position, Rotary)]
    originals = [scaling.original_max_positions for scaling in scalings if isinstance(scaling, LongScaling)]
    switch = min(originals, default=0)
    return Reach(
        attention_window=max(windows) if len(windows) == len(heads) else 0,
        position_switch=switch if switch < spec.max_positions else 0,
    )
