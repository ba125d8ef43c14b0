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
        self._lengths: tuple[int, ...] = ()
        self._places: list[np.ndarray] = []
        self._tensors: tuple[torch.Tensor, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        return self._device.nbytes

    def upload(self, *columns: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The columns as int64 tensors on the device, valid until the next upload."""
        lengths = tuple(map(len, columns))
        if lengths != self._lengths:
            self._divide(lengths)
        if self._copied is not None:
            self._copied.synchronize()
        for place, column in zip(self._places, columns, strict=True):
            place[:] = column
        if self._copied is not None:
            used = sum(lengths)
            self._device[:used].copy_(self._host[:used], non_blocking=True)
            self._copied.record()
        return self._tensors

    def _divide(self, lengths: tuple[int, ...]) -> None:
        """From one step to the next columns mostly have the same lengths: views of both sides are kept."""
        ends = np.cumsum(lengths).tolist()
        spans = [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]
        self._lengths = lengths
        self._places = [self._columns[span] for span in spans]
        self._tensors = tuple(self._device[span] for span in spans)
