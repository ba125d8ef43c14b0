"""Two ranks without shared memory, of which only one is told of a step: it ends, for nobody else can end its wait."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from millrace_worker import abandoned
from millrace_worker.abandoned import Watch

from worker.tests.ports import free_port

from .conftest import Reference
from .plans import PlanBook

SECONDS = 300.0  # generous: how long a start takes on a busy machine is not what is tested
PAGE_SIZE, NUM_PAGES = 16, 40
# A rank with little patience: both compute the first plan, and only rank 0 is told of the second.
RANK = """
import os, sys, threading
from pathlib import Path
from millrace_worker import abandoned
from millrace_worker.config import read_config
from millrace_worker.load import load_rank
from millrace_worker.proto import worker_pb2

abandoned.ABANDONED_SECONDS = 1.0
first, second, *arguments = sys.argv[1:]
rank = load_rank(read_config(arguments, os.environ))
prepared = rank.prepare(worker_pb2.PrepareRequest(max_rows=4, max_step_tokens=64, max_pool_tokens=640))
engine = rank.engine
engine.abandon()  # the stream before has ended
engine.reset()
assert not engine.compute(worker_pb2.StepPlan.FromString(Path(first).read_bytes())).failed
print("computed", prepared.num_pages, flush=True)
if os.environ["RANK"] == "0":
    def wait_for_end():
        sys.stdin.readline()
        engine.abandon()
    threading.Thread(target=wait_for_end, daemon=True).start()
    engine.compute(worker_pb2.StepPlan.FromString(Path(second).read_bytes()))
sys.stdin.readline()
"""


def test_a_rank_that_alone_was_told_of_a_step_ends_when_nobody_waits_for_it(
    tmp_path: Path, reference: Reference
) -> None:
    book = PlanBook(PAGE_SIZE, NUM_PAGES)
    book.admit(0, [5, 4, 3, 2])
    plans = [tmp_path / "first", tmp_path / "second"]
    for path in plans:
        book.work(0)
        path.write_bytes(book.plan().SerializeToString())
    arguments = ["--model-path", str(reference.path), "--uds-path", str(tmp_path / "w"), "--dtype", "float32"]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = os.environ | shared | {"OMP_NUM_THREADS": "1", "MILLRACE_CPU_KERNELS": "off"}
    pipe = subprocess.PIPE
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *map(str, plans), *arguments],
            env=environment | {"RANK": str(rank)},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for rank in ranks:
            assert rank.stdout
            while (line := rank.stdout.readline()) and not line.startswith("computed"):
                pass
            assert line == f"computed {NUM_PAGES}\n"
        time.sleep(3)  # longer than an abandoned step waits: for this one somebody waits
        assert ranks[0].poll() is None
        _, errors = ranks[0].communicate("\n", timeout=60)
        assert ranks[0].returncode == 1
        assert "take no part in a step whose stream is over" in errors
        assert ranks[1].poll() is None, "it waits for nobody; its launcher ends it"
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.parametrize("queues", [False, True])
def test_only_an_abandoned_step_that_waits_for_others_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, queues: bool
) -> None:
    monkeypatch.setattr(abandoned, "ABANDONED_SECONDS", 0.3)
    monkeypatch.setattr(abandoned, "LOOK_SECONDS", 0.01)
    died = threading.Event()
    watch = Watch(lambda why: died.set(), queues=queues)
    watch.abandon()  # the stream before
    watch.begin_stream()
    watch.begin_step()
    with watch.collective():
        assert not died.wait(0.6), "somebody waits for the answer"
    watch.abandon()
    watch.abandon()
    assert died.wait(SECONDS if queues else 0.6) == queues, "a step that only computes may take its time"
    died.clear()
    watch.end_step()
    watch.begin_stream()
    watch.begin_step()
    assert not died.wait(0.6), "it was another stream that was abandoned"
    watch.abandon()
    with watch.collective():
        assert died.wait(SECONDS)


def test_a_step_that_begins_as_its_stream_ends_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abandoned, "ABANDONED_SECONDS", 0.1)
    monkeypatch.setattr(abandoned, "LOOK_SECONDS", 0.01)
    died = threading.Event()
    watch = Watch(lambda why: died.set(), queues=False)
    watch.begin_stream()
    watch.abandon()
    watch.begin_step()
    with watch.collective():
        assert died.wait(SECONDS)


def test_a_step_that_returns_is_watched_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abandoned, "ABANDONED_SECONDS", 0.3)
    monkeypatch.setattr(abandoned, "LOOK_SECONDS", 0.01)
    died = threading.Event()
    watch = Watch(lambda why: died.set(), queues=True)
    watch.begin_step()
    watch.abandon()
    watch.end_step()
    until = time.monotonic() + SECONDS
    while any(thread.name == "abandoned" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not died.is_set()
