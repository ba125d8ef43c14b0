"""The threads of a stream, with an engine whose steps take as long as the test says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from millrace_worker.pipeline import StepPipeline
from millrace_worker.proto import worker_pb2
from millrace_worker.pulse import Pulse
from millrace_worker.rows import ParsedPlan

SECONDS = 20.0


class HeldEngine:
    """A step computes until it is let go; what was parsed, begun and by whom is written down."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.parsed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.threads: set[str] = set()
        self.resets = self.abandoned = 0
        self.fault: BaseException | None = None

    def reset(self) -> None:
        self.resets += 1

    def parse(self, plan: worker_pb2.StepPlan) -> ParsedPlan:
        self.parsed.put(plan.step)
        return ParsedPlan.of(plan)

    def abandon(self) -> None:
        self.abandoned += 1

    def compute_parsed(self, parsed: ParsedPlan) -> worker_pb2.StepResult:
        self.threads.add(threading.current_thread().name)
        self.begun.put(parsed.plan.step)
        assert self.gate.acquire(timeout=SECONDS)
        if self.fault is not None:
            raise self.fault
        return worker_pb2.StepResult(step=parsed.plan.step)


class Client:
    """Plans are put; `gone` ends the iterator as grpc does when the call is cancelled."""

    def __init__(self) -> None:
        self._plans: queue.SimpleQueue[worker_pb2.StepPlan | Exception | None] = queue.SimpleQueue()

    def send(self, step: int) -> None:
        self._plans.put(worker_pb2.StepPlan(step=step))

    def close(self) -> None:
        self._plans.put(None)

    def gone(self, error: Exception) -> None:
        self._plans.put(error)

    def __iter__(self) -> Iterator[worker_pb2.StepPlan]:
        while (plan := self._plans.get(timeout=SECONDS)) is not None:
            if isinstance(plan, Exception):
                raise plan
            yield plan


class Running:
    def __init__(self, pool: ThreadPoolExecutor, engine: HeldEngine) -> None:
        self.engine, self.client, self.deaths = engine, Client(), []
        self.pulse = Pulse()
        self.pipeline = StepPipeline(engine, self.deaths.append, self.pulse)
        threading.Thread(target=self.pipeline.read, args=(self.client,), daemon=True).start()
        self.computing = pool.submit(self.pipeline.compute)
        self.results = self.pipeline.results()

    def next_step(self) -> int:
        return next(self.results).step


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, "compute") as made:
        yield made


@pytest.fixture
def running(pool: ThreadPoolExecutor) -> Iterator[Running]:
    made = Running(pool, HeldEngine())
    yield made
    made.pipeline.end()
    made.engine.gate.release(1000)
    made.computing.result(SECONDS)


def test_results_keep_the_order_of_the_plans_and_one_thread_computes(running: Running) -> None:
    running.engine.gate.release(200)
    for step in range(1, 201):
        running.client.send(step)
    running.client.close()
    assert [result.step for result in running.results] == list(range(1, 201))
    assert running.engine.threads == {"compute_0"}
    assert running.engine.resets == 1


def test_the_pulse_tells_a_step_that_runs_from_steps_that_are_done(running: Running) -> None:
    running.client.send(1)
    assert running.engine.begun.get(timeout=SECONDS) == 1
    assert (running.pulse.is_computing, running.pulse.progress) == (True, 0)
    running.engine.gate.release()
    assert running.next_step() == 1
    running.client.send(2)
    assert running.engine.begun.get(timeout=SECONDS) == 2
    assert (running.pulse.is_computing, running.pulse.progress) == (True, 1)
    running.engine.gate.release()
    assert running.next_step() == 2
    running.client.close()
    running.computing.result(SECONDS)
    assert (running.pulse.is_computing, running.pulse.progress) == (False, 2)


def test_a_plan_is_parsed_while_another_step_runs_and_a_result_is_sent_while_the_next_runs(running: Running) -> None:
    running.client.send(1)
    assert running.engine.begun.get(timeout=SECONDS) == 1
    running.client.send(2)
    assert [running.engine.parsed.get(timeout=SECONDS) for _ in range(2)] == [1, 2]
    assert running.engine.begun.empty()  # step 1 still computes
    running.engine.gate.release()
    assert running.engine.begun.get(timeout=SECONDS) == 2
    assert running.next_step() == 1  # while step 2 computes


def test_all_plans_of_a_client_that_has_closed_its_side_are_answered(running: Running) -> None:
    for step in (1, 2, 3):
        running.client.send(step)
    running.client.close()
    running.engine.gate.release(3)
    assert [result.step for result in running.results] == [1, 2, 3]


def test_the_end_answers_the_step_that_runs_and_no_other(running: Running) -> None:
    for step in (1, 2, 3):
        running.client.send(step)
    assert running.engine.begun.get(timeout=SECONDS) == 1
    running.pipeline.end()
    running.engine.gate.release(3)
    assert [result.step for result in running.results] == [1]
    running.computing.result(SECONDS)
    assert running.engine.begun.empty()


def test_a_client_that_is_gone_ends_the_stream_after_the_step_that_runs(running: Running) -> None:
    running.client.send(1)
    assert running.engine.begun.get(timeout=SECONDS) == 1
    running.client.send(2)
    running.client.gone(grpc.RpcError())
    while running.engine.parsed.get(timeout=SECONDS) != 2:
        pass
    assert running.pipeline._ended.wait(SECONDS)
    running.engine.gate.release(2)
    running.computing.result(SECONDS)
    assert running.engine.begun.empty()


def test_an_error_of_the_reader_ends_the_stream_with_that_error(running: Running) -> None:
    running.engine.gate.release()
    running.client.send(1)
    running.client.gone(MemoryError("a plan too large"))
    assert running.next_step() == 1
    with pytest.raises(MemoryError, match="too large"):
        running.next_step()
    assert running.deaths == []


class Panic(BaseException):
    """As Rust's panics come to Python: not an Exception."""


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_a_fault_of_the_rank_is_told_and_ends_the_stream(running: Running, kind: type[BaseException]) -> None:
    running.engine.fault = kind("the device is gone")
    running.engine.gate.release()
    running.client.send(1)
    with pytest.raises(RuntimeError, match="device is gone"):
        running.next_step()
    assert len(running.deaths) == 1
    assert "device is gone" in running.deaths[0]


def test_a_stream_replaced_in_the_middle_of_a_step_is_followed_by_one_from_empty_rows(pool: ThreadPoolExecutor) -> None:
    engine = HeldEngine()
    first = Running(pool, engine)
    for step in (1, 2):
        first.client.send(step)
    assert engine.begun.get(timeout=SECONDS) == 1
    first.pipeline.end()
    second = Running(pool, engine)
    second.client.send(7)
    engine.gate.release(2)
    assert second.next_step() == 7
    assert [result.step for result in first.results] == [1]
    assert engine.begun.get(timeout=SECONDS) == 7
    assert engine.resets == 2
    second.client.close()
    second.computing.result(SECONDS)
