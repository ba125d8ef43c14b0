"""How many KV pages there are, or rows where there are no pages: the worst case is run, what it took stays free, the
pool or the rows get what is really left."""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from millrace_worker import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from millrace_worker.config import WorkerConfig

# Of the memory that a CPU machine has to spare: the rest is for the page cache, other programs and their growth.
CPU_POOL_SHARE = 0.30

# Of a GPU's memory: what fragmentation and libraries take later (cuBLAS and NCCL workspaces, CUDA modules).
CUDA_RESERVE_SHARE = 0.02


# Limit and usage of a control group, second and first version of the kernel's interface.
CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


# How often the resident size is looked at where the kernel's own high-water mark cannot be set back, and what is added
# to what was seen.
SAMPLE_SECONDS = 0.001
UNSEEN_SHARE = 0.5

# The longest sequence where nobody says, pages do not bound it, and the model's positions hardly do.
OPEN_ROW_TOKENS = 32_768


class DoesNotFitError(ValueError):
    """Not even one sequence fits; the message has the numbers and what to change."""


@dataclass(frozen=True, kw_only=True)
class PoolAsk:
    """What the pool is for. Zero means: the model's longest sequence; no cap."""

    page_size: int
    page_bytes: int
    max_rows: int
    max_positions: int
    max_sequence_tokens: int
    max_pool_tokens: int
    attention_window: int = 0  # so many positions back is all that a sequence holds


@dataclass(frozen=True)
class PoolSize:
    num_pages: int
    max_sequence_tokens: int


def size_pool(ask: PoolAsk, room_bytes: int, *, exact: bool) -> PoolSize:
    """How many pages `room_bytes` give.

    With `exact` the room is what somebody asked for; otherwise pages beyond what all rows at their longest can fill are
    left out. A pool smaller than one sequence shortens the longest sequence when that was left open, but not if it has
    room for a sequence's window. Raises DoesNotFitError.
    """
    longest = ask.max_sequence_tokens or ask.max_positions
    num_pages = room_bytes // ask.page_bytes
    if not exact:
        num_pages = min(num_pages, ask.max_rows * _pages(longest, ask.page_size))
    if ask.max_pool_tokens:
        num_pages = min(num_pages, _pages(ask.max_pool_tokens, ask.page_size))
    holds = num_pages * ask.page_size
    if ask.attention_window and num_pages > _pages(ask.attention_window - 1, ask.page_size):
        return PoolSize(num_pages, ask.max_sequence_tokens or min(longest, max(holds, OPEN_ROW_TOKENS)))
    if num_pages >= 1 and (holds >= longest or not ask.max_sequence_tokens):
        return PoolSize(num_pages, min(longest, holds))
    needed = _pages(longest, ask.page_size) * ask.page_bytes
    raise DoesNotFitError(
        f"the KV pool holds {holds} tokens ({num_pages} pages of {ask.page_bytes} bytes in {room_bytes} bytes), but "
        f"one sequence of {longest} tokens needs {needed} bytes: lower --max-total-tokens, or give the pool "
        "more memory (--kv-cache-memory, --cuda-memory-fraction, --max-batch-total-tokens)"
    )


@dataclass(frozen=True, kw_only=True)
class RowsAsk:
    """What rows with a state of their own are for. `row_bytes` tells the bytes of one by its longest sequence;
    `max_sequence_tokens` 0: left open."""

    row_bytes: Callable[[int], int]
    max_rows: int
    max_positions: int
    max_sequence_tokens: int


@dataclass(frozen=True)
class RowsSize:
    max_rows: int
    max_sequence_tokens: int


def size_rows(ask: RowsAsk, room_bytes: int) -> RowsSize:
    """How many rows `room_bytes` give, at most those asked for. Raises DoesNotFitError when not even one fits.

    A length that was left open is what the model's positions allow, but no more than `OPEN_ROW_TOKENS`, and less where
    the state grows with it and one row would not fit.
    """
    longest = ask.max_sequence_tokens or min(ask.max_positions, OPEN_ROW_TOKENS)
    while not ask.max_sequence_tokens and longest > 2 and ask.row_bytes(longest) > room_bytes:
        longest //= 2
    needed = ask.row_bytes(longest)
    max_rows = min(ask.max_rows, room_bytes // needed)
    if max_rows < 1:
        raise DoesNotFitError(
            f"the state of one sequence of {longest} tokens needs {needed} bytes, but there are {room_bytes}: "
            "lower --max-total-tokens, or give more memory (--kv-cache-memory, --cuda-memory-fraction)"
        )
    return RowsSize(max_rows, longest)


def _pages(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size)


@dataclass(frozen=True)
class Room:
    """Memory for the pool on one rank, in bytes; `exact` when it was asked for and not estimated."""

    pool_bytes: int
    free_bytes: int
    exact: bool


def room_for_pool(config: WorkerConfig, device: torch.device, workspace_bytes: int) -> Room:
    """What this rank may give to its pool, beyond the weights (already there) and the workspaces of the worst case.

    Raises DoesNotFitError when --kv-cache-memory asks for more than there is.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        kept = (1.0 - config.cuda_memory_fraction + CUDA_RESERVE_SHARE) * total
        free = max(0, free - workspace_bytes - int(kept))
        share = free
    else:
        free = max(0, available_memory() // config.world_size - workspace_bytes)
        share = int(free * CPU_POOL_SHARE)
    if config.kv_cache_memory is None:
        return Room(share, free, exact=False)
    if config.kv_cache_memory > free:
        raise DoesNotFitError(f"--kv-cache-memory is {config.kv_cache_memory} bytes, but only {free} are left")
    return Room(config.kv_cache_memory, free, exact=True)


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take: the machine's MemAvailable, or less where its control group says so."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"{proc}/meminfo has no MemAvailable: Linux 3.14 or newer is needed")
    available = int(match[1]) * 1024
    for limit, usage in CGROUP_FILES:
        try:
            available = min(available, int((cgroup / limit).read_text()) - int((cgroup / usage).read_text()))
        except (OSError, ValueError):
            continue  # no such control group here, or its limit is "max"
    return max(0, available)


def peak_beyond(run: Callable[[], None], device: torch.device) -> int:
    """Bytes that `run` took at its peak beyond what was there: device memory on GPUs, on CPUs resident memory but for
    pages of files that have come back (`libraries.py`), which the system may take again."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before, of_files = _status_bytes("VmRSS"), _status_bytes("RssFile")
    if _restart_resident_peak():
        run()
        peak = _status_bytes("VmHWM")
    else:
        peak = _sampled_peak(run)
    returned = max(0, _status_bytes("RssFile") - of_files)
    return max(0, peak - before - returned)


def bytes_held(device: torch.device) -> int:
    """Bytes that this process has taken: of the device, or on CPUs of private memory (not of mapped files)."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status_bytes("RssAnon")


def _restart_resident_peak() -> bool:
    """Sets the kernel's high-water mark of this process to its present size; False where the kernel forbids it, as some
    sandboxes do. The mark is then the highest so far, which is that of loading, and says nothing of what comes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _sampled_peak(run: Callable[[], None]) -> int:
    """The largest resident size seen during `run`, looked at from another thread; and a share more, for a peak between
    two looks. Where the high-water mark rises it is the peak itself, and where it does not no peak was above it."""
    _say_that_peaks_are_sampled()
    mark, seen, is_over = _status_bytes("VmHWM"), [_status_bytes("VmRSS")], threading.Event()
    before = seen[0]

    def look() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            seen.append(max(seen.pop(), _status_bytes("VmRSS")))

    looking = threading.Thread(target=look, name="resident size", daemon=True)
    looking.start()
    try:
        run()
    finally:
        is_over.set()
        looking.join()
    peak = before + int((max(*seen, _status_bytes("VmRSS")) - before) * (1 + UNSEEN_SHARE))
    risen = _status_bytes("VmHWM")
    return risen if risen > mark else min(peak, mark or peak)  # some sandboxes know no mark


@functools.cache
def _say_that_peaks_are_sampled() -> None:
    logs.warning(
        "what steps take is measured by samples: /proc/self/clear_refs cannot be written here",
        sample_ms=SAMPLE_SECONDS * 1000,
        added_share=UNSEEN_SHARE,
    )


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
