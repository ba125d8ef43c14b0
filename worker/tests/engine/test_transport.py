"""The worker's gRPC server against grpcio's client: who is told what, and when a call or a stream has ended."""

from __future__ import annotations

import queue
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from millrace_transport import Call, RefusedError, Server, Stream

from worker.tests.ports import LOCALHOST

SECONDS = 30.0
METHOD = "/millrace.v1.Worker/"


def raising(error: Exception) -> Any:
    raise error


class Held:
    """A method that waits until it is let go, and shows its call."""

    def __init__(self) -> None:
        self.seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.gate = threading.Event()

    def unary(self, call: Call, request: bytes) -> bytes:
        self.seen.put(call)
        assert self.gate.wait(SECONDS)
        return request

    def stream(self, stream: Stream) -> None:
        self.seen.put(stream)
        assert self.gate.wait(SECONDS)


class Taken:
    """A stream whose method is the test itself."""

    def __init__(self, channel: grpc.Channel, held: Held) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call: Any = channel.stream_stream(METHOD + "Held")(iter(self._requests.get, None), timeout=SECONDS)
        self.stream: Stream = held.seen.get(timeout=SECONDS)

    def send(self, request: bytes) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._requests.put(None)


def echo(stream: Stream) -> None:
    while (request := stream.receive()) is not None:
        stream.send(request)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.gate.set()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t") / "s"


@pytest.fixture
def server(path: Path, held: Held) -> Iterator[Server]:
    calls: dict[str, Any] = {
        "Echo": lambda _, request: request,
        "Wait": held.unary,
        "Refuse": lambda _, request: raising(RefusedError(9, request.decode())),
        "Fail": lambda _, __: raising(KeyError("what nobody has foreseen")),
        "Text": lambda _, __: "no bytes",
    }
    made = Server(path, calls, {"Echoes": echo, "Held": held.stream, "Failing": lambda _: raising(OSError(5, "lost"))})
    yield made
    held.gate.set()
    made.stop(0)


@pytest.fixture
def channel(server: Server, path: Path) -> Iterator[grpc.Channel]:
    options = [*LOCALHOST, ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"unix:{path}", options=options) as made:
        yield made


def asked(channel: grpc.Channel, method: str, request: bytes = b"", seconds: float = SECONDS) -> bytes:
    return channel.unary_unary(METHOD + method)(request, timeout=seconds)


@pytest.mark.parametrize("length", [0, 1, 5_000_000])
def test_bytes_come_back_as_they_were(channel: grpc.Channel, length: int) -> None:
    data = bytes(range(256)) * (length // 256) + b"\x07" * (length % 256)
    assert asked(channel, "Echo", data) == data
    assert list(channel.stream_stream(METHOD + "Echoes")(iter([data] * 20), timeout=SECONDS)) == [data] * 20


def test_what_a_method_raises_is_what_its_client_is_told(channel: grpc.Channel) -> None:
    def refused(method: str, request: bytes = b"") -> Any:
        with pytest.raises(grpc.RpcError) as error:
            asked(channel, method, request)
        return error.value

    refusal = refused("Refuse", "zu groß".encode())
    assert (refusal.code(), refusal.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "zu groß")
    failure = refused("Fail")
    assert failure.code() is grpc.StatusCode.UNKNOWN
    assert "what nobody has foreseen" in failure.details()
    assert refused("Text").code() is grpc.StatusCode.UNKNOWN
    assert refused("Nothing").code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError, match="lost"):
        list(channel.stream_stream(METHOD + "Failing")(iter([]), timeout=SECONDS))


def test_calls_are_answered_while_others_wait(channel: grpc.Channel, held: Held) -> None:
    waiting = [channel.unary_unary(METHOD + "Wait").future(b"%d" % number, timeout=SECONDS) for number in range(20)]
    for _ in waiting:
        held.seen.get(timeout=SECONDS)
    assert asked(channel, "Echo", b"now") == b"now"
    held.gate.set()
    assert [call.result() for call in waiting] == [b"%d" % number for number in range(20)]


def test_a_method_sees_that_its_client_has_left(channel: grpc.Channel, held: Held) -> None:
    waiting = channel.unary_unary(METHOD + "Wait").future(b"", timeout=SECONDS)
    call: Call = held.seen.get(timeout=SECONDS)
    assert call.is_active()
    waiting.cancel()
    wait_until(lambda: not call.is_active())


def test_a_call_that_is_cancelled_ends_for_its_client_before_its_method_does(channel: grpc.Channel, held: Held) -> None:
    waiting = channel.unary_unary(METHOD + "Wait").future(b"", timeout=SECONDS)
    call: Call = held.seen.get(timeout=SECONDS)
    call.cancel()
    with pytest.raises(grpc.RpcError) as error:
        waiting.result()
    assert error.value.code() is grpc.StatusCode.CANCELLED  # pyright: ignore[reportAttributeAccessIssue]
    assert not held.gate.is_set()


def wait_until(holds: Callable[[], bool]) -> None:
    ever = threading.Event()
    for _ in range(int(SECONDS / 0.01)):
        if holds():
            return
        ever.wait(0.01)
    raise AssertionError("it did not come about")


@pytest.fixture
def taken(channel: grpc.Channel, held: Held) -> Taken:
    return Taken(channel, held)


def test_the_head_of_a_stream_comes_before_its_method_does_anything(taken: Taken) -> None:
    assert taken.call.initial_metadata() is not None


def test_an_answer_arrives_while_the_method_goes_on(taken: Taken) -> None:
    taken.send(b"1")
    assert taken.stream.receive() == b"1"
    taken.stream.send(b"one")
    assert next(taken.call) == b"one"
    assert taken.stream.is_active()


def test_after_the_last_request_there_is_none_and_all_is_answered(taken: Taken, held: Held) -> None:
    for number in range(40):
        taken.send(b"%d" % number)
    taken.close()
    assert [taken.stream.receive() for _ in range(41)] == [*(b"%d" % number for number in range(40)), None]
    assert taken.stream.is_active()  # its client still listens
    taken.stream.send(b"all")
    held.gate.set()
    assert list(taken.call) == [b"all"]


@pytest.mark.parametrize("has_closed", [False, True])
def test_who_is_gone_is_noticed_in_the_middle_of_whatever_the_method_does(taken: Taken, has_closed: bool) -> None:
    ended = threading.Event()
    taken.stream.on_end(ended.set)
    for request in (b"1", b"2", b"3"):
        taken.send(request)
    if has_closed:
        taken.close()
    assert taken.stream.receive() == b"1"
    assert not ended.is_set()
    taken.call.cancel()
    assert ended.wait(SECONDS)
    assert not taken.stream.is_active()
    assert taken.stream.receive() is None, "nobody waits for what is computed of it"
    taken.stream.send(b"to nobody")


def test_the_end_wakes_who_waits_for_a_request(taken: Taken, held: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(taken.stream.receive)
        assert not waiting.done()
        taken.stream.end()
        assert waiting.result(SECONDS) is None
    taken.stream.send(b"the last")
    held.gate.set()
    assert list(taken.call) == [b"the last"]


def test_who_is_cancelled_gets_what_was_sent_and_is_told(taken: Taken) -> None:
    taken.stream.send(b"one")
    taken.stream.cancel()
    taken.stream.send(b"too late")
    assert next(taken.call) == b"one"
    with pytest.raises(grpc.RpcError) as error:
        next(taken.call)
    assert error.value.code() is grpc.StatusCode.CANCELLED  # pyright: ignore[reportAttributeAccessIssue]


def test_an_end_is_told_once_also_to_who_asks_late_and_not_after_the_method_has_returned(
    channel: grpc.Channel, held: Held
) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    early, late, never = (Taken(channel, held) for _ in range(3))
    early.stream.on_end(lambda: told.put("early"))
    early.stream.end()
    early.stream.end()
    late.stream.end()
    late.stream.on_end(lambda: told.put("late"))
    assert [told.get(timeout=SECONDS) for _ in range(2)] == ["early", "late"]
    never.stream.on_end(lambda: told.put("never"))
    held.gate.set()
    assert list(never.call) == []
    wait_until(lambda: not never.stream.is_active())
    never.stream.end()
    assert told.empty()


def test_nothing_is_called_any_more_once_that_was_said_and_what_is_under_way_has_returned(taken: Taken) -> None:
    begun, may_end, returned = (threading.Event() for _ in range(3))

    def slow() -> None:
        begun.set()
        assert may_end.wait(SECONDS)
        returned.set()

    taken.stream.on_end(slow)
    with ThreadPoolExecutor(2) as pool:
        ending = pool.submit(taken.stream.end)
        assert begun.wait(SECONDS)
        disarming = pool.submit(taken.stream.on_end, None)
        with pytest.raises(TimeoutError):
            disarming.result(0.05)
        may_end.set()
        disarming.result(SECONDS)
        assert returned.is_set()
        ending.result(SECONDS)


def test_after_nothing_was_asked_for_an_end_calls_nothing(taken: Taken) -> None:
    ended = threading.Event()
    taken.stream.on_end(ended.set)
    taken.stream.on_end(None)
    taken.stream.end()
    assert not ended.is_set()


def test_what_is_no_message_ends_the_stream_and_its_client_is_told(path: Path, server: Server, held: Held) -> None:
    """Compressed, although no compression was agreed on."""
    options = [*LOCALHOST, ("grpc.default_compression_algorithm", grpc.Compression.Gzip.value)]
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        requests = iter([b"a" * 10_000])
        call: Any = channel.stream_stream(METHOD + "Echoes")(
            requests, timeout=SECONDS, compression=grpc.Compression.Gzip
        )
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]


def test_a_stop_waits_for_what_runs_and_takes_nothing_new(
    server: Server, channel: grpc.Channel, held: Held, path: Path
) -> None:
    waiting = channel.unary_unary(METHOD + "Wait").future(b"to be answered", timeout=SECONDS)
    held.seen.get(timeout=SECONDS)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop, SECONDS)
        wait_until(lambda: refuses(path))
        assert not stopping.done()
        held.gate.set()
        assert waiting.result() == b"to be answered"
        stopping.result(SECONDS)


def refuses(path: Path) -> bool:
    with grpc.insecure_channel(f"unix:{path}", options=LOCALHOST) as other:
        try:
            asked(other, "Echo", seconds=1.0)
        except grpc.RpcError:
            return True
        return False


def test_a_stop_cuts_what_takes_longer_than_it_may(server: Server, taken: Taken) -> None:
    server.stop(0.05)
    with pytest.raises(grpc.RpcError):
        next(taken.call)


def test_health_is_what_was_said_last(server: Server, channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request: Any = health_pb2.HealthCheckRequest()  # pyright: ignore[reportAttributeAccessIssue]
    answers = health_pb2.HealthCheckResponse  # pyright: ignore[reportAttributeAccessIssue]
    assert stub.Check(request, timeout=SECONDS).status == answers.NOT_SERVING
    server.set_serving(True)
    assert stub.Check(request, timeout=SECONDS).status == answers.SERVING
    server.set_serving(False)
    assert stub.Check(request, timeout=SECONDS).status == answers.NOT_SERVING


def test_a_place_where_nobody_can_listen_is_an_error(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        with pytest.raises(OSError, match="in use"):
            Server(path, {}, {})
    assert stat.S_ISSOCK(path.stat().st_mode)
    with pytest.raises(OSError):
        Server(path / "below", {}, {})
