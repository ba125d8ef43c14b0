"""Ranks that exchange through shared memory: as threads, in every order of arrival; as processes that die."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import addressof, c_char
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from millrace_kernels import Exchange
from millrace_worker import shared_memory
from millrace_worker.distributed import RankGoneError
from millrace_worker.shared_memory import COUNT_BYTES, TOKEN_BYTES, SharedMemory, SharedMemoryGroup

SLOT_VALUES = 256 * 1024 // 4
SIZES = [2, 3, 5]
# Of one round, just one, just more than one, several.
COUNTS = [1, 1000, SLOT_VALUES, SLOT_VALUES + 1, 3 * SLOT_VALUES + 7]


class Ranks:
    """Ends of one memory, each used by a thread of its own that now and then is late."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, Exchange.shared_bytes(size))
        address = addressof(c_char.from_buffer(self._memory))
        self.size = size
        self._ends = [Exchange(address, rank, size, self._check_time) for rank in range(size)]
        self._threads, self._deadline = ThreadPoolExecutor(size), 0.0

    def _check_time(self) -> None:
        """A test that has failed must not leave a thread that waits for ever: its process would wait for it."""
        if time.monotonic() > self._deadline:
            raise TimeoutError("the other ranks do not come")

    def run(self, act: Callable[[int, Exchange], object]) -> list:
        self._deadline = time.monotonic() + 60

        def late(rank: int) -> object:
            if random.random() < 0.5:
                time.sleep(random.random() * 0.01)
            return act(rank, self._ends[rank])

        return list(self._threads.map(late, range(self.size)))


@pytest.mark.parametrize("size", SIZES)
def test_many_exchanges_in_a_row(size: int) -> None:
    """Sums, broadcasts and gathers in a random order: nobody reads what belongs to another round."""
    ranks = Ranks(size)
    for _ in range(30):
        count, kind = random.choice([*COUNTS, random.randint(1, 5000)]), random.choice(["sum", "broadcast", "gather"])
        given = [torch.randn(count) for _ in range(size)]
        rows, width = random.choice([(1, count), (count, 1), (7, -(-count // 7))])
        blocks = [torch.randn(rows, width) for _ in range(size)]
        out = torch.full((rows, size * width), float("nan"))

        def act(rank: int, end: Exchange) -> torch.Tensor:
            x = given[rank].clone()  # noqa: B023 - run ends before the loop goes on
            if kind == "sum":  # noqa: B023
                end.sum(x.data_ptr(), len(x))
            elif kind == "broadcast":  # noqa: B023
                end.broadcast(x.data_ptr(), x.nbytes)
            else:
                block = blocks[rank]  # noqa: B023
                end.gather(block.data_ptr(), len(block), block[0].nbytes, out.data_ptr() if rank == 0 else 0)  # noqa: B023
            return x

        found = ranks.run(act)
        if kind == "sum":
            expected = given[0].clone()
            for each in given[1:]:
                expected += each
            assert all(torch.equal(x, expected) for x in found)
        elif kind == "broadcast":
            assert all(torch.equal(x, given[0]) for x in found)
        else:
            assert torch.equal(out, torch.cat(blocks, dim=1))


def test_nothing_beyond_the_tensor_is_written() -> None:
    ranks = Ranks(2)
    given = [torch.ones(102), torch.ones(102)]

    def act(rank: int, end: Exchange) -> None:
        end.sum(given[rank][1:].data_ptr(), 100)
        end.broadcast(given[rank][50:].data_ptr(), 4)

    ranks.run(act)
    for x in given:
        assert (x[0], x[101]) == (1, 1)
        assert (x[1:101] == 2).all()


def test_a_rank_that_waits_asks_whether_the_others_live_and_ends_when_they_do_not() -> None:
    memory = mmap.mmap(-1, Exchange.shared_bytes(2))
    asked = []

    def alive() -> None:
        asked.append(threading.get_ident())
        if len(asked) == 3:
            raise RuntimeError("the other is gone")

    alone = Exchange(addressof(c_char.from_buffer(memory)), 0, 2, alive)
    x = torch.ones(10)
    with pytest.raises(RuntimeError, match="the other is gone"):
        alone.sum(x.data_ptr(), 10)
    assert len(asked) == 3


def test_wrong_ends_are_refused() -> None:
    with pytest.raises(ValueError, match="no exchange"):
        Exchange(4096, 2, 2, lambda: None)
    with pytest.raises(ValueError, match="no exchange"):
        Exchange(4096 + 8, 0, 2, lambda: None)
    memory = mmap.mmap(-1, Exchange.shared_bytes(2))
    end = Exchange(addressof(c_char.from_buffer(memory)), 0, 2, lambda: None)
    with pytest.raises(ValueError, match="memory of its own"):
        end.gather(torch.ones(3).data_ptr(), 1, 12, 0)


def test_a_step_ends_for_all_ranks_with_the_worst_outcome() -> None:
    """Whoever fails, before whichever sum: the others leave, all know it, and the next step is in order."""
    for size in (2, 3):
        ranks = Ranks(size)
        for _ in range(40):
            counts = [random.choice(COUNTS[:3]) for _ in range(4)]
            failing = {rank: random.randrange(5) for rank in range(size) if random.random() < 0.3}

            def act(rank: int, end: Exchange) -> tuple[int, int]:
                end.begin_step()
                outcome = 0
                for number, count in enumerate(counts):  # noqa: B023
                    if failing.get(rank) == number:  # noqa: B023
                        break
                    x = torch.full((count,), float(rank + 1))
                    try:
                        end.sum(x.data_ptr(), count)
                    except ConnectionAbortedError:
                        outcome = 1
                        break
                    assert (x == size * (size + 1) / 2).all()  # noqa: B023
                return end.end_step(2 + rank if rank in failing and not outcome else outcome)  # noqa: B023

            verdicts = set(ranks.run(act))
            assert len(verdicts) == 1
            outcome, rank = verdicts.pop()
            assert (rank in failing and outcome == 2 + rank) if failing else (outcome, rank) == (0, 0)


RANK = """
import os, sys, time, torch
from millrace_worker.distributed import connect
from millrace_worker.distributed import Outcome, RankGoneError
from millrace_worker.shared_memory import SharedMemoryGroup, join
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
group = join(connect(rank, size, torch.device("cpu")))
assert isinstance(group, SharedMemoryGroup), group
for count in (5, 100_000):
    x = torch.full((count,), float(rank + 1))
    assert (group.all_reduce(x) == size * (size + 1) / 2).all()
columns = group.gather_columns(torch.full((3, 2), rank))
assert (columns is None) == (rank > 0)
assert columns is None or columns.tolist() == [[0, 0, 1, 1, 2, 2]] * 3
assert group.broadcast(torch.tensor([rank + 7])).item() == 7
wide = torch.full((4,), rank, dtype=torch.float64)
assert group.all_reduce(wide).tolist() == [3.0] * 4  # not float32: through the sockets
# A step of which only rank 0 was told: the others end it with it, and all go on.
if rank == 0:
    group.begin_step()
    try:
        group.all_reduce(torch.ones(5))
    except ConnectionAbortedError:
        assert group.end_step(Outcome.LEFT)[0] is Outcome.FAILED
else:
    while not group.memory.num_missed():
        time.sleep(0.001)
    group.catch_up()
group.begin_step()
assert group.all_reduce(torch.ones(5)).tolist() == [size] * 5
assert group.end_step(Outcome.DONE)[0] is Outcome.DONE
print("ready", flush=True)
if rank == 1:
    time.sleep(60)
group.begin_step()
try:
    group.all_reduce(torch.ones(5))
except RankGoneError as error:
    print(error, flush=True)
    os._exit(7)
"""


@pytest.mark.parametrize("is_abandoned", ["before", "meanwhile", "the stream before", "no"])
def test_who_waits_for_ranks_that_do_not_come_gives_up(monkeypatch: pytest.MonkeyPatch, is_abandoned: str) -> None:
    """The other rank may never have been told of the step, or stand still. A wait that was short is none."""
    says = "stream is over" if is_abandoned in ("before", "meanwhile") else "have not answered"
    monkeypatch.setattr(shared_memory, "ABANDONED_SECONDS", 0.5)
    monkeypatch.setattr(shared_memory, "COLLECTIVE_TIMEOUT", timedelta(seconds=2.0))
    descriptor = os.memfd_create("millrace")
    num_bytes = Exchange.shared_bytes(2) + 2 * COUNT_BYTES + TOKEN_BYTES
    os.truncate(descriptor, num_bytes)
    memory = SharedMemory(descriptor, num_bytes, 0, 2)
    monkeypatch.setattr(memory, "_others", [])  # a lock of this process's own is no lock to it
    exchange = Exchange(memory.address, 0, 2, memory.check_others)
    group = SharedMemoryGroup(rank=0, size=2, exchange=exchange, memory=memory)
    if is_abandoned == "the stream before":
        group.abandon()
    group.begin_stream()
    if is_abandoned == "before":
        group.abandon()
    group.begin_step()
    if is_abandoned == "meanwhile":
        group.abandon()
    with pytest.raises(RankGoneError, match=says):
        group.all_reduce(torch.ones(5))


def test_processes_exchange_and_notice_the_death_of_one(free_port: int) -> None:
    """Rank 1 is killed, and nobody has collected it yet: the others end by themselves."""
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "3"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "ready\n"
        ranks[1].send_signal(signal.SIGKILL)
        for rank in (ranks[0], ranks[2]):
            assert rank.wait(timeout=300) == 7
            assert rank.stdout is not None
            assert rank.stdout.read() == "rank 1 has ended\n"
        leaked = [path for path in Path("/dev/shm").glob("millrace*") if path.is_file()]
        assert not leaked
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
