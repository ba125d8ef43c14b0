"""A stream of steps, with an engine whose steps take as long as the test says and a client in this process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from millrace_worker.proto import worker_pb2
from millrace_worker.pulse import Pulse
from millrace_worker.stream import StepStream

SECONDS = 20.0


class HeldEngine:
    """A step computes until it is let go; what was begun and by whom is written down."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.threads: set[str] = set()
        self.resets = self.abandoned = 0
        self.fault: BaseException | None = None

    def reset(self) -> None:
        self.resets += 1

    def abandon(self) -> None:
        self.abandoned += 1

    def compute(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        self.threads.add(threading.current_thread().name)
        self.begun.put(plan.step)
        assert self.gate.acquire(timeout=SECONDS)
        if self.fault is not None:
            raise self.fault
        return worker_pb2.StepResult(step=plan.step)


class Client:
    """What the transport shows of a client: plans that were sent, results that it gets."""

    def __init__(self) -> None:
        self._plans: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._on_end: Callable[[], None] | None = None

    def plan(self, step: int) -> None:
        self._plans.put(worker_pb2.StepPlan(step=step).SerializeToString())

    def close(self) -> None:
        self._plans.put(None)

    def next_step(self) -> int:
        return worker_pb2.StepResult.FromString(self._results.get(timeout=SECONDS)).step

    def receive(self) -> bytes | None:
        return self._plans.get(timeout=SECONDS)

    def send(self, answer: bytes, /) -> None:
        self._results.put(answer)

    def on_end(self, call: Callable[[], None] | None, /) -> None:
        self._on_end = call

    def leave(self) -> None:
        if self._on_end is not None:
            self._on_end()


class Running:
    def __init__(self, pool: ThreadPoolExecutor, engine: HeldEngine) -> None:
        self.engine, self.client, self.pulse = engine, Client(), Pulse()
        self.deaths: list[str] = []
        self.computing = pool.submit(StepStream(engine, self.client, self.deaths.append, self.pulse).compute)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, "compute") as made:
        yield made


@pytest.fixture
def running(pool: ThreadPoolExecutor) -> Iterator[Running]:
    made = Running(pool, HeldEngine())
    yield made
    made.client.close()
    made.engine.gate.release(1000)
    made.computing.exception(SECONDS)


def test_results_keep_the_order_of_the_plans_and_one_thread_computes(running: Running) -> None:
    running.engine.gate.release(200)
    for step in range(1, 201):
        running.client.plan(step)
    running.client.close()
    assert [running.client.next_step() for _ in range(200)] == list(range(1, 201))
    running.computing.result(SECONDS)
    assert running.engine.threads == {"compute_0"}
    assert running.engine.resets == 1


def test_the_pulse_tells_a_step_that_runs_from_steps_that_are_done(running: Running) -> None:
    running.client.plan(1)
    assert running.engine.begun.get(timeout=SECONDS) == 1
    assert (running.pulse.is_computing, running.pulse.progress) == (True, 0)
    running.engine.gate.release()
    assert running.client.next_step() == 1
    running.client.plan(2)
    assert running.engine.begun.get(timeout=SECONDS) == 2
    assert (running.pulse.is_computing, running.pulse.progress) == (True, 1)
    running.engine.gate.release()
    assert running.client.next_step() == 2
    running.client.close()
    running.computing.result(SECONDS)
    assert (running.pulse.is_computing, running.pulse.progress) == (False, 2)


def test_a_result_is_sent_before_the_next_step_is_done(running: Running) -> None:
    running.client.plan(1)
    running.client.plan(2)
    running.engine.gate.release()
    assert running.client.next_step() == 1
    assert [running.engine.begun.get(timeout=SECONDS) for _ in range(2)] == [1, 2]


def test_who_leaves_in_the_middle_of_a_step_abandons_it(running: Running) -> None:
    running.client.plan(1)
    assert running.engine.begun.get(timeout=SECONDS) == 1
    running.client.leave()
    assert running.engine.abandoned == 1


def test_what_is_no_plan_ends_the_stream_and_not_the_process(running: Running) -> None:
    running.client._plans.put(b"\xff\xff\xff")
    with pytest.raises(Exception, match="parsing"):
        running.computing.result(SECONDS)
    assert running.deaths == []


class Panic(BaseException):
    """As Rust's panics come to Python: not an Exception."""


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_a_fault_of_the_rank_is_told_and_ends_the_stream(running: Running, kind: type[BaseException]) -> None:
    running.engine.fault = kind("the device is gone")
    running.engine.gate.release()
    running.client.plan(1)
    with pytest.raises(RuntimeError, match="device is gone"):
        running.computing.result(SECONDS)
    assert len(running.deaths) == 1
    assert "device is gone" in running.deaths[0]
    assert not running.pulse.is_computing


def test_a_stream_after_another_begins_with_empty_rows(pool: ThreadPoolExecutor) -> None:
    engine = HeldEngine()
    engine.gate.release(2)
    for number in (1, 2):
        running = Running(pool, engine)
        running.client.plan(7)
        assert running.client.next_step() == 7
        running.client.close()
        running.computing.result(SECONDS)
        assert engine.resets == number
        running.client.leave()
        assert engine.abandoned == 0, "the next stream's step could be meant"
