"""Out of memory in a step: how it is recognized, and how what the step held is given back."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import traceback
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# What libraries write into errors that have no type of their own: torch's allocator for CPUs, the C++ library, drivers.
_SIGNS = ("can't allocate memory", "bad_alloc", "out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: to a device or to this process."""
    return any(_says_so(one) for one in _chain(error))


def _says_so(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def drop_references(error: BaseException) -> None:
    """Forgets the variables of all calls that the error went through: as long as it is known it would keep them."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def release_memory(device: torch.device) -> None:
    """Gives back what allocators keep for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
