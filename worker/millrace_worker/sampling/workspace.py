"""Scratch tensors of a sampling step: made once, used again by every later step."""

from __future__ import annotations

import torch
from torch import Tensor

# Scores that are processed at once: on a CPU what stays in its cache, elsewhere what bounds the memory.
CPU_ELEMENTS = 1 << 17
DEVICE_ELEMENTS = 1 << 23


class Workspace:
    """Tensors by name, at fixed addresses. What a name held is overwritten by whoever takes it next."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._buffers: dict[str, Tensor] = {}

    def rows_at_once(self, width: int) -> int:
        """How many rows of `width` scores are processed together."""
        return max(1, (CPU_ELEMENTS if self.device.type == "cpu" else DEVICE_ELEMENTS) // width)

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor of this shape, its values arbitrary. A name always has the same dtype."""
        numel = 1
        for extent in shape:
            numel *= extent
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < numel:
            self._buffers.pop(name, None)
            buffer = self._buffers[name] = torch.empty(numel, dtype=dtype, device=self.device)
        return buffer[:numel].view(shape)
