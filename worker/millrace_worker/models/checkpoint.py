"""Tensors of a safetensors checkpoint, read by memory map, only the part that is asked for.

What has been read is given back: pages of a mapped file count as this process's memory until it lets go of them, and
the weights are copied out of them anyway.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor

from millrace_worker.models.weight_files import CheckpointError, Stored, find_tensors

__all__ = ["FLOATS", "Checkpoint", "CheckpointError"]

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Mapped pages that have been read are let go of after this much.
MAX_HELD_BYTES = 64 << 20


class MappedFile:
    """A file's bytes; pages come in as they are read, and go with `let_go`."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        with warnings.catch_warnings():
            # It cannot be written to, and is not.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def tensor(self, stored: Stored) -> Tensor:
        """A view of the map, to be read only."""
        dtype = DTYPES[stored.dtype]
        if stored.start == stored.stop:
            return torch.empty(stored.shape, dtype=dtype)
        flat = self._bytes[stored.start : stored.stop]
        if stored.start % dtype.itemsize:  # legal, though no writer that is known does it
            flat = flat.clone()
        return flat.view(dtype).view(stored.shape)

    def let_go(self) -> None:
        """Views stay valid: what is read again comes again from the file."""
        self._map.madvise(mmap.MADV_DONTNEED)


# Told of bytes: how many have been read, and how many there are.
OnRead = Callable[[int, int], None]


def unwatched(_done: int, _total: int) -> None:
    """Nobody follows the reading."""


class Checkpoint:
    """All tensors of a folder, and which of them have been read. `on_read` is told whenever one is, whole or in part:
    what is left unread belongs to another rank."""

    def __init__(self, folder: Path, optional_prefix: str = "") -> None:
        """Raises CheckpointError when the folder has no whole safetensors."""
        self._prefix = optional_prefix
        self._folder = folder
        self._stored = find_tensors(folder)
        self._files = {path: MappedFile(path) for path in {stored.path for stored in self._stored.values()}}
        self._unused = set(self._stored)
        self._held_bytes = 0
        self._read_bytes = 0
        self._total_bytes = sum(stored.stop - stored.start for stored in self._stored.values())
        self.on_read: OnRead = unwatched

    def has(self, name: str) -> bool:
        return self._stored_name(name) is not None

    def dtype(self, name: str) -> torch.dtype | None:
        """How the tensor is stored; None when it is missing, or in a dtype that torch has not."""
        found = self._stored_name(name)
        return None if found is None else DTYPES.get(self._stored[found].dtype)

    def read(
        self, name: str, shape: tuple[int, ...], *parts: slice, dtypes: tuple[torch.dtype, ...] = FLOATS
    ) -> Tensor:
        """`parts` of the tensor `name`, which must have `shape` and one of `dtypes`: a view of the mapped file, in its
        own dtype, to be copied from and not written to.

        Raises CheckpointError when it is missing or is another.
        """
        found = self._stored_name(name)
        if found is None:
            raise CheckpointError(f"{self._folder}: the tensor {name} of shape {list(shape)} is missing")
        stored = self._stored[found]
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.path}: the tensor {found} has shape {list(stored.shape)}, config.json makes it {list(shape)}"
            )
        if DTYPES.get(stored.dtype) not in dtypes:
            expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise CheckpointError(
                f"{stored.path}: the tensor {found} has the dtype {stored.dtype}; what can be read here is {expected}"
            )
        self._note(found)
        part = self._files[stored.path].tensor(stored)[parts]
        self._let_go_after(part.nbytes)
        return part

    def check_all_read(self, ignored: Iterable[str]) -> None:
        """Raises CheckpointError when tensors are left that match no pattern of `ignored`: a spec that reads less than
        the checkpoint holds would answer nonsense."""
        patterns = tuple(ignored)
        left = sorted(name for name in self._unused if not any(fnmatch(f".{name}", f"*{p}") for p in patterns))
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            count = "1 tensor belongs" if len(left) == 1 else f"{len(left)} tensors belong"
            raise CheckpointError(
                f"{self._stored[left[0]].path}: {count} to no part of the model that config.json describes: {shown}"
            )

    def _note(self, name: str) -> None:
        """The tensor is about to be read."""
        if name in self._unused:
            self._unused.remove(name)
            self._read_bytes += self._stored[name].stop - self._stored[name].start
            self.on_read(self._read_bytes, self._total_bytes)

    def _let_go_after(self, num_bytes: int) -> None:
        """Counts what is about to be read; what was read before it goes when that has become much."""
        if self._held_bytes > MAX_HELD_BYTES:
            self._held_bytes = 0
            for file in self._files.values():
                file.let_go()
        self._held_bytes += num_bytes

    def _stored_name(self, name: str) -> str | None:
        if name in self._stored:
            return name
        bare = name.removeprefix(self._prefix)
        return bare if self._prefix and bare in self._stored else None
