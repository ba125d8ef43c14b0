"""The KV pool of one rank: pages of keys and values of every layer, in one tensor.

A slot (page * page_size + offset) holds one token's K of all heads, then its V of all heads, side by side: a token is
written with one copy, a page is gathered with one.

Every value that attention may read is finite, whatever was in the pool before: pages start as zeros, and the backend
clears a page when a sequence begins it. A mask alone would not do, since 0 * NaN is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KvGeometry:
    """`width` is the number of values that one token has in one layer: K and V of this rank's heads."""

    num_layers: int
    width: int
    page_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def layer_page_bytes(self) -> int:
        return self.page_size * self.width * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.num_layers * self.layer_page_bytes


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that on a CPU cost nothing until they are written: numpy's come from the kernel as they are (calloc), while
    torch writes every one of its own."""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)


class KvPool:
    def __init__(self, geometry: KvGeometry, num_pages: int) -> None:
        """Zeros: on a CPU a large pool takes real memory only where it is written."""
        self.num_pages = num_pages
        shape = (geometry.num_layers, num_pages, geometry.page_size * geometry.width)
        self.values = lazy_zeros(shape, geometry.dtype, geometry.device)
        self.pages = list(self.values.unbind(0))  # per layer [num_pages, page_size * width]
        self.slots = [pages.view(-1, geometry.width) for pages in self.pages]  # per layer [num_slots, width]

    def clear(self, pages: Tensor) -> None:
        """Zeroes `pages` (int64) of all layers."""
        self.values.index_fill_(1, pages, 0)

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Copies whole pages of all layers; of a layer, all sources are read before any target is written."""
        sources, targets = sources.long(), targets.long()
        for pages in self.pages:  # one by one: all at once would need their memory once more
            pages.index_copy_(0, targets, pages.index_select(0, sources))
