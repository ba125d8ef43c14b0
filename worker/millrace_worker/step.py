"""What one forward pass computes, as the engine tells it to the model: the host-side description of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
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
    num_prompt_tokens: np.ndarray | None = None  # int64 [B]: how many of the sequence's tokens its client gave
    page_table: Tensor  # int32 [max_rows, max_pages], on the device
    page_table_host: np.ndarray  # int32 [max_rows, max_pages], the same on the host
    lengths: np.ndarray | None = None  # int64 [B]: tokens known of each sequence; None: no more than this step computes

    @property
    def num_tokens(self) -> int:
        return int(self.counts.sum())

    def known(self) -> np.ndarray:
        """[B]: how many tokens of each sequence are known."""
        return self.starts + self.counts if self.lengths is None else self.lengths

    def select(self, kept: np.ndarray) -> Batch:
        """The entries where `kept` is true."""
        lengths = None if self.lengths is None else self.lengths[kept]
        columns = (self.rows[kept], self.starts[kept], self.counts[kept])
        return replace(self, rows=columns[0], starts=columns[1], counts=columns[2], lengths=lengths)

    def in_chunks(self, size: int, page_size: int) -> Batch:
        """The same tokens where every `size` positions are a sequence of their own.

        Each entry has a row of its own, whose first page is that of its chunk. `size` is a multiple of `page_size`.
        """
        ends = self.starts + self.counts
        firsts = self.starts // size
        pieces = (ends - 1) // size - firsts + 1
        entry = np.repeat(np.arange(len(pieces)), pieces)
        begins = (firsts[entry] + np.arange(len(entry)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * size
        starts, stops = np.maximum(self.starts[entry], begins) - begins, np.minimum(ends[entry], begins + size) - begins
        reach = np.arange(-(-int(stops.max(initial=0)) // page_size))
        places = np.minimum(begins[:, None] // page_size + reach, self.page_table_host.shape[1] - 1)
        table = np.ascontiguousarray(self.page_table_host[self.rows[entry, None], places])
        return Batch(
            rows=np.arange(len(entry)),
            starts=starts,
            counts=stops - starts,
            page_table=torch.from_numpy(table).to(self.page_table.device),
            page_table_host=table,
        )
