"""Scratch tensors of a sampling step: made once, used again by every later step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Scores that are processed at once: on a CPU what stays in its cache, elsewhere what bounds the memory.
CPU_ELEMENTS = 1 << 17
# With large vocabularies operators should still see several rows: their calls cost more than the cache saves.
MIN_ROWS = 8
DEVICE_ELEMENTS = 1 << 23


class Workspace:
    """Tensors by name, at fixed addresses. What a name held is overwritten by whoever takes it next."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}  # what each name was taken as last

    def rows_at_once(self, width: int) -> int:
        """How many rows of `width` scores are processed together: the loops of a step are over such blocks."""
        return max(MIN_ROWS, (CPU_ELEMENTS if self.device.type == "cpu" else DEVICE_ELEMENTS) // width)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor of this shape, its values arbitrary. A name always has the same dtype."""
        view = self._views.get(name)
        if view is not None and view.shape == shape:
            return view
        numel = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < numel:
            self._buffers.pop(name, None)
            self._views.pop(name, None)
            buffer = self._buffers[name] = torch.empty(numel, dtype=dtype, device=self.device)
        view = self._views[name] = buffer[:numel].view(shape)
        return view
