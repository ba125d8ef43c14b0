"""What one forward pass computes, as the engine tells it to the model: the host-side description of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One entry per sequence that computes in this step; its tokens follow one another in the order of the entries.

    Entry i computes the positions ``starts[i] .. starts[i] + counts[i]`` of the sequence in row ``rows[i]``, so there
    are ``T = counts.sum()`` tokens. Entry p of a row of the page table is the page that holds the positions
    ``p * page_size .. (p + 1) * page_size``.
    """

    rows: np.ndarray  # int64 [B]
    starts: np.ndarray  # int64 [B]
    counts: np.ndarray  # int64 [B], at least 1
    page_table: Tensor  # int32 [max_rows, max_pages], on the device
    page_table_host: np.ndarray  # int32 [max_rows, max_pages], the same on the host

    @property
    def num_tokens(self) -> int:
        return int(self.counts.sum())
