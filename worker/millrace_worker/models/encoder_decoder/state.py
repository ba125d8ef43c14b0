"""What a row keeps of its sequence: the prompt's ids until they are encoded, then keys and values.

In each layer of the decoder a row has one run of slots. The first P, for P tokens of the prompt, hold keys and values
of what was encoded, which the decoder attends to; those after them hold the decoder's own, one for each of its tokens.
A sequence of S tokens, of which the last is never an input, thus needs S of them: P, and S - P for the start token and
all later ones but that last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from millrace_worker.kv_pool import lazy_zeros
from millrace_worker.step import Batch


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """Sizes of one rank."""

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    def row_bytes(self, max_tokens: int) -> int:
        per_token = self.num_layers * 2 * self.num_heads * self.head_dim * self.dtype.itemsize
        return max_tokens * (per_token + torch.int64.itemsize)


class RowStates:
    def __init__(self, shape: StateShape, max_rows: int, max_tokens: int) -> None:
        kv = (shape.num_layers, max_rows, 2, shape.num_heads, max_tokens, shape.head_dim)
        self.max_tokens = max_tokens
        self.prompts = lazy_zeros((max_rows, max_tokens), torch.int64, shape.device)
        self._kv = lazy_zeros(kv, shape.dtype, shape.device)

    def write(self, layer: int, row: int, first: int, kv_T2NH: Tensor) -> None:
        """Into slots `first ..` of the row."""
        self._kv[layer, row, :, :, first : first + len(kv_T2NH)] = kv_T2NH.permute(1, 2, 0, 3)

    def read(self, layer: int, row: int, slots: slice) -> tuple[Tensor, Tensor]:
        """Keys and values [N, slots, H]."""
        k, v = self._kv[layer, row, :, :, slots].unbind()
        return k, v


@dataclass(frozen=True)
class Reading:
    """Tokens of a prompt that a step brings; with the last of them, `ends`, the whole prompt is encoded."""

    row: int
    tokens: slice  # among the step's
    start: int
    num_prompt_tokens: int

    @property
    def ends(self) -> bool:
        return self.start + self.tokens.stop - self.tokens.start == self.num_prompt_tokens


@dataclass(frozen=True)
class Writing:
    """Tokens that the decoder computes for a row: positions `first ..` of the decoder, the start token being 0."""

    row: int
    tokens: slice  # among the decoder's tokens of the step
    first: int
    num_prompt_tokens: int

    @property
    def count(self) -> int:
        return self.tokens.stop - self.tokens.start

    @property
    def own_slots(self) -> slice:
        """Of the decoder's tokens so far, those of this step included."""
        return slice(self.num_prompt_tokens, self.num_prompt_tokens + self.first + self.count)


@dataclass(frozen=True)
class Step:
    """`places` int64: where the decoder's tokens stand among the step's; the last token of a prompt is the start
    token's place, since both give the first new one."""

    readings: tuple[Reading, ...]
    writings: tuple[Writing, ...]
    places: Tensor
    starts: Tensor  # bool, of the same length: the start token stands here


def plan_step(batch: Batch, device: torch.device) -> Step:
    """A row's tokens up to its prompt's end are read, and those from that end on written."""
    prompts = batch.num_prompt_tokens
    if prompts is None:
        raise ValueError("an encoder needs to know where prompts end")
    readings, writings, places = [], [], []
    offset = written = 0
    for row, start, count, prompt in zip(
        batch.rows.tolist(), batch.starts.tolist(), batch.counts.tolist(), prompts.tolist(), strict=True
    ):
        end = start + count
        if start < prompt:
            readings.append(Reading(row, slice(offset, offset + min(end, prompt) - start), start, prompt))
        if end >= prompt:
            first = max(start, prompt - 1)
            writings.append(Writing(row, slice(written, written + end - first), first - prompt + 1, prompt))
            places.append(np.arange(offset + first - start, offset + count))
            written += end - first
        offset += count
    where = np.concatenate(places) if places else np.empty(0, dtype=np.int64)
    starts = np.zeros(len(where), dtype=np.bool_)
    starts[[writing.tokens.start for writing in writings if writing.first == 0]] = True
    return Step(
        tuple(readings), tuple(writings), torch.from_numpy(where).to(device), torch.from_numpy(starts).to(device)
    )
