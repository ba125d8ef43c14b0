"""Host columns that reach the device in one copy, through memory allocated once."""

from __future__ import annotations

import numpy as np
import torch


class Staging:
    """A fixed buffer of `capacity` int64 values on the host and its twin on the device; one memory on CPUs.

    On GPUs the host side is pinned and copied asynchronously, so the next upload first waits until the last copy has
    been made (not for the step that uses it: work on one stream is ordered).
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(capacity, dtype=torch.int64, pin_memory=on_gpu)
        self._columns = self._host.numpy()
        self._device = self._host.to(device) if on_gpu else self._host
        self._copied = torch.cuda.Event() if on_gpu else None

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        return self._device.nbytes

    def upload(self, *columns: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The columns as int64 tensors on the device, valid until the next upload."""
        if self._copied is not None:
            self._copied.synchronize()
        ends = np.cumsum([len(column) for column in columns]).tolist()
        for column, end in zip(columns, ends, strict=True):
            self._columns[end - len(column) : end] = column
        if self._copied is not None:
            self._device[: ends[-1]].copy_(self._host[: ends[-1]], non_blocking=True)
            self._copied.record()
        return tuple(self._device[end - len(column) : end] for column, end in zip(columns, ends, strict=True))
