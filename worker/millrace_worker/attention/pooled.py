"""What backends over pages of one size share: the KV pool of one rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from millrace_worker.attention.interface import PagedLayer
from millrace_worker.kv_pool import KvGeometry, KvPool

PAGE_SIZE = 16


class Pooled:
    """Holds the pool. What lies in a page is the backend's own."""

    page_size = PAGE_SIZE

    def __init__(self, layers: Sequence[PagedLayer], dtype: torch.dtype, device: torch.device) -> None:
        """Raises ValueError when layers keep K and V of different sizes."""
        widths = {heads.width for heads in layers}
        if len(widths) != 1:
            raise ValueError(f"layers keep {sorted(widths)} values per token; one size for all is implemented")
        for chunk in {heads.rule.chunk for heads in layers} - {None}:
            if chunk is not None and chunk % PAGE_SIZE:
                raise ValueError(f"attention in chunks of {chunk} positions: multiples of {PAGE_SIZE} are implemented")
        self.geometry = KvGeometry(
            num_layers=len(layers), width=widths.pop(), page_size=PAGE_SIZE, dtype=dtype, device=device
        )
        self._pool: KvPool | None = None

    @property
    def pool(self) -> KvPool:
        if self._pool is None:
            raise RuntimeError("allocate_kv must come before the first step")
        return self._pool

    def allocate(self, num_pages: int) -> None:
        self._pool = None
        self._pool = KvPool(self.geometry, num_pages)

    def page_bytes(self) -> int:
        return self.geometry.page_bytes

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        self.pool.copy(sources, targets)
