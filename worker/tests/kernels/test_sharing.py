"""Ranks that share no memory exchange through sockets, all of them, whichever one cannot have it and why."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from millrace_kernels import Exchange
from millrace_worker.distributed import Group
from millrace_worker.shared_memory import COUNT_BYTES, TOKEN_BYTES, SharedMemoryGroup, join

NUM_BYTES = Exchange.shared_bytes(2) + 2 * COUNT_BYTES + TOKEN_BYTES
TOKEN = 1234567890123


class Other:
    """The other rank of two: what it tells as rank 0, and whether it has the memory."""

    def __init__(self, says: list[int] | None = None, *, has_it: bool = True) -> None:
        self._says, self._has_it = says, has_it
        self.told: list[int] = []

    def broadcast(self, told: torch.Tensor, src: int) -> None:
        if self._says is not None:
            told.copy_(torch.tensor(self._says))
        self.told = told.tolist()

    def all_reduce(self, everybody: torch.Tensor, op: object) -> None:
        everybody.logical_and_(torch.tensor([self._has_it]))


def _join(monkeypatch: pytest.MonkeyPatch, rank: int, other: Other) -> Group:
    monkeypatch.setattr(dist, "broadcast", other.broadcast)
    monkeypatch.setattr(dist, "all_reduce", other.all_reduce)
    return join(Group(rank=rank, size=2))


def _num_files(*descriptors: int) -> int:
    """How many descriptors this process has of the files of `descriptors`; others come and go in other threads."""
    files, count = [os.fstat(each) for each in descriptors], 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += any(os.path.samestat(os.fstat(int(entry.name)), file) for file in files)
    return count


@pytest.fixture
def memory() -> Iterator[int]:
    """A descriptor of what rank 0 has made."""
    descriptor = os.memfd_create("test")
    os.truncate(descriptor, NUM_BYTES)
    os.pwrite(descriptor, TOKEN.to_bytes(TOKEN_BYTES, "little"), NUM_BYTES - TOKEN_BYTES)
    yield descriptor
    os.close(descriptor)


def test_memory_that_both_have_is_used(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    assert isinstance(_join(monkeypatch, 0, Other()), SharedMemoryGroup)
    assert isinstance(_join(monkeypatch, 1, Other([os.getpid(), memory, TOKEN])), SharedMemoryGroup)


def test_memory_that_only_one_has_is_not(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    assert _join(monkeypatch, 0, Other(has_it=False)) == Group(0, 2)
    assert _join(monkeypatch, 1, Other([os.getpid(), memory, TOKEN], has_it=False)) == Group(1, 2)


def test_rank_0_that_gets_no_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> int:
        raise OSError("no memory")

    for call in ("memfd_create", "posix_fallocate"):
        other = Other()
        with monkeypatch.context() as broken:
            broken.setattr(os, call, none)
            assert _join(broken, 0, other) == Group(0, 2)
        assert other.told == [0, -1, 0], call


def test_what_is_not_rank_0s_memory_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    """The process of that number may be of another machine, or container; its files are not kept open."""
    with tempfile.TemporaryFile() as other_file:
        said = {
            "none was made": [0, -1, 0],
            "no such file": [os.getpid(), 1_000_000, TOKEN],
            "no such process": [2**22 + 1, memory, TOKEN],
            "another size": [os.getpid(), other_file.fileno(), TOKEN],
            "another one's": [os.getpid(), memory, TOKEN + 1],
        }
        before = _num_files(memory, other_file.fileno())
        for why, says in said.items():
            assert _join(monkeypatch, 1, Other(says)) == Group(1, 2), why
            assert _num_files(memory, other_file.fileno()) == before, why


def test_one_rank_alone_shares_with_nobody() -> None:
    assert join(Group()) == Group()
