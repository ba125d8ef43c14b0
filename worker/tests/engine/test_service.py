"""The service without sockets: who holds the engine, what a router is told, how calls end when the process does."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from millrace_transport import RefusedError
from millrace_worker import __main__ as process
from millrace_worker.config import WorkerConfig
from millrace_worker.memory import DoesNotFitError
from millrace_worker.proto import worker_pb2
from millrace_worker.pulse import Pulse
from millrace_worker.server import Code, EngineSlot, WorkerService, remove_stale_socket

SECONDS = 60.0
REQUEST = worker_pb2.PrepareRequest(max_rows=4, max_step_tokens=64)


class Call:
    """A call as the service sees it; `cancel` ends it, from either side."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def cancel(self) -> None:
        self.ended.set()

    def is_active(self) -> bool:
        return not self.ended.is_set()


class Silent(Call):
    """A stream whose client says nothing until it ends."""

    end = Call.cancel

    def receive(self) -> bytes | None:
        assert self.ended.wait(SECONDS)
        return None

    def send(self, answer: bytes, /) -> None:
        raise AssertionError("there is nothing to answer")

    def on_end(self, call: Callable[[], None] | None, /) -> None:
        pass


class Idle:
    """An engine to which no plan comes. `resets` counts the streams that have begun to compute."""

    def __init__(self) -> None:
        self.resets = threading.Semaphore(0)

    def reset(self) -> None:
        self.resets.release()

    def abandon(self) -> None:
        pass


class Loaded:
    """A rank in small: `fault` is what `prepare` meets, `meanwhile` is called when a stream asks for the engine."""

    def __init__(self) -> None:
        self.idle = Idle()
        self.fault: BaseException | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def prepare(self, _: worker_pb2.PrepareRequest) -> worker_pb2.Prepared:
        if self.fault is not None:
            raise self.fault
        return worker_pb2.Prepared(num_pages=7)

    @property
    def engine(self) -> Idle:
        self.meanwhile()
        return self.idle


class Served:
    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.loading: Future[Any] = Future()
        self.deaths: list[str] = []
        self.service = WorkerService(self.loading, 1, self.deaths.append, Pulse())
        self._pool = pool

    def describe(self, call: Call | None = None) -> worker_pb2.ModelDescription:
        return self.service.describe(call or Call())

    def prepare(self) -> worker_pb2.Prepared:
        return self.service.prepare(Call(), REQUEST)

    def stream(self) -> Future[None]:
        silent: Any = Silent()
        return self._pool.submit(self.service.run, silent)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def served(pool: ThreadPoolExecutor) -> Iterator[Served]:
    made = Served(pool)
    yield made
    made.service.stop()


@pytest.fixture
def rank(served: Served) -> Loaded:
    loaded = Loaded()
    served.loading.set_result(loaded)
    return loaded


def test_who_comes_later_ends_who_holds_the_engine_and_nobody_who_has_let_go(pool: ThreadPoolExecutor) -> None:
    slot, calls = EngineSlot(), [Call() for _ in range(4)]
    gone: Any = calls[0]
    with slot.taken_by(gone):
        pass

    held = [threading.Event() for _ in calls]

    def hold(number: int) -> None:
        call: Any = calls[number]
        with slot.taken_by(call):
            held[number].set()
            assert calls[number].ended.wait(SECONDS)

    holding = [pool.submit(hold, 1)]
    assert held[1].wait(SECONDS)
    # Each one ends the one before; that one's end must not make the slot forget the one behind it.
    for number in (2, 3):
        holding.append(pool.submit(hold, number))
        try:
            assert calls[number - 1].ended.wait(SECONDS), number
        finally:
            calls[number - 1].cancel()
        holding[number - 2].result(SECONDS)
        assert held[number].wait(SECONDS)
    assert not calls[0].ended.is_set()
    assert not calls[3].ended.is_set()
    calls[3].cancel()
    holding[2].result(SECONDS)


def test_who_is_replaced_while_it_waits_does_not_wait_for_who_replaced_it(pool: ThreadPoolExecutor) -> None:
    slot, calls, held = EngineSlot(), [Call() for _ in range(3)], [threading.Event() for _ in range(3)]
    may_leave = threading.Event()

    def hold(number: int) -> None:
        call: Any = calls[number]
        with slot.taken_by(call):
            held[number].set()
            assert may_leave.wait(SECONDS)

    holding = [pool.submit(hold, 0)]
    assert held[0].wait(SECONDS)
    for number in (1, 2):  # each one ends the one before it, which does not leave yet
        holding.append(pool.submit(hold, number))
        assert calls[number - 1].ended.wait(SECONDS)
    with pytest.raises(RefusedError) as ended:
        holding[1].result(SECONDS)
    assert ended.value.args[0] == Code.CANCELLED
    assert not held[1].is_set()
    assert not held[2].is_set()
    may_leave.set()
    for each in (holding[0], holding[2]):
        each.result(SECONDS)
    assert held[2].is_set()


class Panic(BaseException):
    """As Rust's panics come to Python: not an Exception."""


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (DoesNotFitError("3 GiB are needed"), Code.FAILED_PRECONDITION),
        (MemoryError("3 GiB are needed"), Code.RESOURCE_EXHAUSTED),
        (RuntimeError("3 GiB are needed"), Code.RESOURCE_EXHAUSTED),
        (OSError(errno.ENOMEM, "3 GiB are needed"), Code.RESOURCE_EXHAUSTED),
        # Another rank has failed in the same worst case: the exchange's way to say so.
        (ConnectionAbortedError("3 GiB are needed"), Code.RESOURCE_EXHAUSTED),
        (Panic("3 GiB are needed"), Code.RESOURCE_EXHAUSTED),
    ],
)
def test_whatever_keeps_a_rank_from_being_prepared_is_a_refusal_with_its_words(
    served: Served, rank: Loaded, fault: BaseException, code: Code
) -> None:
    """A router asks again and again after anything that is no refusal."""
    rank.fault = fault
    with pytest.raises(RefusedError, match="3 GiB are needed") as refused:
        served.prepare()
    assert refused.value.args[0] == code
    rank.fault = None
    assert served.prepare().num_pages == 7


def test_a_load_that_failed_is_told_and_a_stop_ends_who_waits_for_one(served: Served, pool: ThreadPoolExecutor) -> None:
    waiting = pool.submit(served.describe)
    with pytest.raises(TimeoutError):
        waiting.result(0.01)
    served.service.stop()
    with pytest.raises(RefusedError, match="stopping") as refused:
        waiting.result(SECONDS)
    assert refused.value.args[0] == Code.UNAVAILABLE

    other = Served(pool)
    other.loading.set_exception(ValueError("no such file"))
    with pytest.raises(RefusedError, match="could not load its model: no such file") as refused:
        other.describe()
    assert refused.value.args[0] == Code.UNAVAILABLE


def test_a_caller_that_has_left_is_not_waited_for(served: Served) -> None:
    left = Call()
    left.cancel()
    with pytest.raises(RefusedError):
        served.describe(left)


def test_a_stop_ends_the_stream_that_runs_and_the_one_that_begins_in_that_moment(served: Served, rank: Loaded) -> None:
    running = served.stream()
    assert rank.idle.resets.acquire(timeout=SECONDS)
    served.service.stop()
    running.result(SECONDS)

    other = Served(served._pool)
    other.loading.set_result(rank)
    rank.meanwhile = other.service.stop
    other.stream().result(SECONDS)
    for each in (served, other):
        assert each.deaths == []


def test_only_what_nobody_listens_on_is_removed(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "w-0"
    remove_stale_socket(path)
    path.write_text("somebody's")
    with pytest.raises(FileExistsError, match="not a socket"):
        remove_stale_socket(path)
    assert path.read_text() == "somebody's"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(FileExistsError, match="another worker listens"):
            remove_stale_socket(path)
        assert path.is_socket()
    remove_stale_socket(path)
    assert not path.exists()


def test_the_first_reason_to_end_is_the_one_that_counts() -> None:
    ending = process.Ending()
    ending.decide(0)
    ending.decide(1, "cannot load: the load was cut short")
    assert ending.wait() == (0, "")


@pytest.mark.parametrize("fault", [Panic("a kernel fell over"), SystemExit(3), ValueError("a kernel fell over")])
def test_whatever_ends_a_load_ends_the_process_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fails(_: object) -> None:
        raise fault

    monkeypatch.setattr("millrace_worker.models.preflight.check", fails)
    config = WorkerConfig(model_path=tmp_path, uds_path=str(tmp_path / "w"))
    loading: Future[Any] = Future()
    ending = process.Ending()
    process.load(config, loading, SimpleNamespace(), ending, Pulse())  # type: ignore[arg-type]
    status, message = ending.wait()
    assert status == 1
    assert str(fault) in message
    assert isinstance(loading.exception(0), Exception), "callers are refused, and their threads live on"


def test_a_standard_input_that_cannot_be_read_is_as_good_as_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal that was hung up."""
    left: list[tuple[int, str]] = []

    def hung_up(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    config = WorkerConfig(model_path=tmp_path, uds_path=str(tmp_path / "w"))
    config.socket_path.touch()
    with monkeypatch.context() as broken:
        broken.setattr(process, "leave", lambda status, message="": left.append((status, message)))
        broken.setattr(os, "read", hung_up)
        process.watch_lifeline(config)
    assert left == [(1, "the launcher is gone")]
    assert not config.socket_path.exists()


def test_a_socket_whose_worker_is_too_busy_to_answer_is_respected(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "w-0"
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        with suppress(BlockingIOError):  # as many as wait to be taken
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(str(path))
        with pytest.raises(OSError, match="somebody listens"):
            remove_stale_socket(path)
    assert path.is_socket()
