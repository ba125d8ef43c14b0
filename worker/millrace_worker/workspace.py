"""Memory that operators write their results into, used again in every step.

A fresh tensor of some megabytes costs a page fault for each of its pages whenever it is made. A workspace is made once,
grows to the largest step (which `Prepare` runs) and stays.
"""

from __future__ import annotations

from enum import Enum, auto

import torch
from torch import Tensor


class Role(Enum):
    """What a result is for. Two results of one role are never needed at the same time."""

    NORMED = auto()  # what the linear layers of a block take
    QKV = auto()
    LATENT = auto()  # of queries, or of keys and values; normalized before the next one is made
    LATENT_NORMED = auto()
    LATENT_QUERY = auto()
    ATTENDED = auto()
    ATTENTION_DELTA = auto()  # what the attention adds to the residual stream
    UP = auto()
    ROUTER = auto()  # a mixture's logits
    RECURRENT_IN = auto()  # a recurrent layer's input and gate
    SELECTED = auto()  # what its input selects of its state
    STEPS = auto()  # how far each channel of it goes
    MLP_DELTA = auto()  # what the MLP adds to it
    SORTED = auto()  # a mixture's tokens, once for each expert that they have chosen, expert by expert
    EXPERTS = auto()  # what the experts give, in the same order
    MIXED = auto()  # what the mixture adds to the residual stream
    DELTA_NORMED = auto()  # either of them, normalized once more
    STREAM = auto()  # the residual stream itself, where an operator makes it anew: never in a workspace
    LOGITS = auto()  # outlives the step that computes it: never in a workspace


class Workspace:
    """Rows of `width` values, one after the other. What `rows` answers is valid until it or `reach` is called again."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.width, self.dtype = width, dtype
        self._memory = torch.empty(0, width, dtype=dtype)
        self._rows, self._number = self._memory, 0
        self.address = self._memory.data_ptr()

    def rows(self, number: int) -> Tensor:
        """[number, width], contiguous, at `address`; its values are whatever was there."""
        if self._number != number:
            self.reach(number)
            self._rows, self._number = self._memory[:number], number
        return self._rows

    def reach(self, number: int) -> int:
        """The address, good for so many rows."""
        if self._memory.shape[0] < number:
            self._number = -1
            self._memory = self._rows = torch.empty(0)  # the old one goes before the new one comes
            self._memory = torch.empty(number, self.width, dtype=self.dtype)
            self.address = self._memory.data_ptr()
        return self.address


class FreshRows:
    """The form of `Workspace` whose rows are the caller's to keep."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self._width, self.dtype = width, dtype
        self.address = 0

    def rows(self, number: int) -> Tensor:
        made = torch.empty(number, self._width, dtype=self.dtype)
        self.address = made.data_ptr()
        return made


class Workspaces:
    """The workspaces of one model, one for each role and shape."""

    def __init__(self) -> None:
        self._made: dict[tuple[Role, int, torch.dtype], Workspace] = {}

    def take(self, role: Role, width: int, dtype: torch.dtype) -> Workspace | FreshRows:
        if role in (Role.STREAM, Role.LOGITS):
            return FreshRows(width, dtype)
        key = (role, width, dtype)
        if key not in self._made:
            self._made[key] = Workspace(width, dtype)
        return self._made[key]
