"""Ranks of one machine exchange through memory that they share: microseconds where gloo's sockets take hundreds.

Rank 0 makes the memory (a memfd: it has no name that could be left behind) and tells the others, through the group
that exists, under which of its descriptors it lies. Each rank holds a lock on its own byte of it, which the system
gives back when the process ends, however it ends: that is how the others notice.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from millrace_worker import logs
from millrace_worker.abandoned import ABANDONED_SECONDS
from millrace_worker.distributed import COLLECTIVE_TIMEOUT, Group, Outcome, RankGoneError

if TYPE_CHECKING:
    from millrace_kernels import Exchange

# Bytes behind the exchange's own: of each rank, how many steps it has begun; and a proof of rank 0's that a file is
# the one it made.
COUNT_BYTES = 8
TOKEN_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class SharedMemoryGroup(Group):
    """`Group` whose tensors on the CPU go through shared memory."""

    exchange: Exchange
    memory: SharedMemory

    @property
    def stays_in_step(self) -> bool:
        return True

    def begin_stream(self) -> None:
        self.memory.is_abandoned = False

    def begin_step(self) -> None:
        self.memory.count_step()
        self.exchange.begin_step()

    def end_step(self, outcome: Outcome) -> tuple[Outcome, int]:
        self.memory.begin()
        worst, rank = self.exchange.end_step(outcome)
        return Outcome(worst), rank

    def catch_up(self) -> None:
        self.begin_stream()
        # A router that dies may have told some ranks of a step and not others: those would wait for these for ever.
        for _ in range(self.memory.num_missed()):
            self.begin_step()
            self.end_step(Outcome.FAILED)

    def abandon(self) -> None:
        self.memory.is_abandoned = True

    def all_reduce(self, x: Tensor) -> Tensor:
        if not _plain(x) or not x.is_floating_point() or x.dtype is torch.float64:
            return super().all_reduce(x)
        if x.dtype is not torch.float32:
            return x.copy_(self.all_reduce(x.float()))
        self.memory.begin()
        self.exchange.sum(x.data_ptr(), x.numel())
        return x

    def gather_columns(self, x_RV: Tensor) -> Tensor | None:
        x_RV = x_RV.contiguous()
        rows, columns = x_RV.shape
        out = x_RV.new_empty(rows, self.size * columns) if self.rank == 0 else None
        self.memory.begin()
        address = 0 if out is None else out.data_ptr()
        self.exchange.gather(x_RV.data_ptr(), rows, columns * x_RV.itemsize, address)
        return out

    def broadcast(self, x: Tensor) -> Tensor:
        if not _plain(x):
            return super().broadcast(x)
        self.memory.begin()
        self.exchange.broadcast(x.data_ptr(), x.nbytes)
        return x


def _plain(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.is_contiguous()


class SharedMemory:
    """The memory as one rank sees it. A rank must not open its file a second time: closing that would drop its lock."""

    def __init__(self, descriptor: int, num_bytes: int, rank: int, size: int) -> None:
        """Takes the descriptor over. Raises OSError when the memory cannot be had."""
        self._descriptor = descriptor
        self._others = [other for other in range(size) if other != rank]
        self._rank = rank
        self._counts_at = num_bytes - TOKEN_BYTES - COUNT_BYTES * size
        self._steps = 0
        self._mapped = mmap.mmap(descriptor, num_bytes)
        self._began = 0.0
        self.is_abandoned = False  # the stream whose step is computed
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._mapped))

    def token(self) -> int:
        return int.from_bytes(self._mapped[-TOKEN_BYTES:], "little")

    def count_step(self) -> None:
        """A step begins."""
        self._steps += 1
        at = self._counts_at + COUNT_BYTES * self._rank
        self._mapped[at : at + COUNT_BYTES] = self._steps.to_bytes(COUNT_BYTES, "little")

    def num_missed(self) -> int:
        """How many steps more than this rank another has begun."""
        starts = (self._counts_at + COUNT_BYTES * other for other in self._others)
        begun = (int.from_bytes(self._mapped[at : at + COUNT_BYTES], "little") for at in starts)
        return max(0, *begun, self._steps) - self._steps

    def begin(self) -> None:
        """An exchange begins: from now on the others have COLLECTIVE_TIMEOUT."""
        self._began = time.monotonic()

    def check_others(self) -> None:
        """Raises RankGoneError when a rank has ended or the exchange takes too long."""
        for other in self._others:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, other)
            except OSError:
                continue  # it holds its byte: it lives
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, other)
            raise RankGoneError(f"rank {other} has ended")
        waited = time.monotonic() - self._began
        if waited > COLLECTIVE_TIMEOUT.total_seconds():
            raise RankGoneError(f"the other ranks have not answered for {waited:.0f} seconds")
        if self.is_abandoned and waited > ABANDONED_SECONDS:
            raise RankGoneError("the other ranks take no part in a step whose stream is over")


def join(group: Group) -> Group:
    """`group` through shared memory; `group` itself, with a warning, where its ranks do not share any. Every rank has
    to call it."""
    from millrace_kernels import Exchange

    if group.size == 1:
        return group
    num_bytes = Exchange.shared_bytes(group.size) + COUNT_BYTES * group.size + TOKEN_BYTES
    made = _make(num_bytes) if group.rank == 0 else None
    process, descriptor, token = (os.getpid(), *made) if made is not None else (0, -1, 0)
    told = torch.tensor([process, descriptor, token])
    dist.broadcast(told, src=0)
    memory = None
    try:
        memory = _open(told.tolist(), num_bytes, group)
    except OSError as error:
        logs.warning("ranks exchange through sockets: they share no memory", reason=str(error))
    everybody = torch.tensor([memory is not None])
    dist.all_reduce(everybody, op=dist.ReduceOp.MIN)
    if memory is None or not everybody.item():
        return group
    exchange = Exchange(memory.address, group.rank, group.size, memory.check_others)
    return SharedMemoryGroup(rank=group.rank, size=group.size, exchange=exchange, memory=memory)


def _make(num_bytes: int) -> tuple[int, int] | None:
    """A descriptor of new memory, and the number at its end; None where there is none to be had."""
    try:
        descriptor = os.memfd_create("millrace", os.MFD_CLOEXEC)
        os.posix_fallocate(descriptor, 0, num_bytes)
        token = secrets.randbits(8 * TOKEN_BYTES - 1)
        os.pwrite(descriptor, token.to_bytes(TOKEN_BYTES, "little"), num_bytes - TOKEN_BYTES)
    except OSError as error:
        logs.warning("no memory to share", reason=str(error))
        return None
    return descriptor, token


def _open(told: list[int], num_bytes: int, group: Group) -> SharedMemory:
    process, descriptor, token = told
    if descriptor < 0:
        raise OSError("rank 0 has made none")
    if group.rank > 0:
        descriptor = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size == num_bytes:
            memory = SharedMemory(descriptor, num_bytes, group.rank, group.size)
            if memory.token() == token:
                return memory
        raise OSError(f"process {process} of this machine is not rank 0")
    except OSError:
        os.close(descriptor)
        raise
