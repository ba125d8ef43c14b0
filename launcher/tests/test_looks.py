"""What is seen of a router from outside: its answers, and whether it does anything at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from millrace_launcher import health
from millrace_launcher.actions import ROUTER, Action, AskStacks, ChildId, Kill
from millrace_launcher.failures import Work
from millrace_launcher.health import Hang, Look, Poller, look, work_seen
from millrace_launcher.pulse import Pulse
from millrace_launcher.shell import Looked, Shell
from millrace_launcher.supervisor import Supervisor

HOST = "127.0.0.1"
BUSY = "import time\nwhile True: time.sleep(0.001)"


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """The port of somebody who gives these answers, one after the other."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def look_at(answer: bytes) -> Look:
    with answering(answer) as port:
        return look(HOST, port)


def test_a_rank_that_hangs_is_seen_whether_the_router_works_or_not() -> None:
    hung = {"rank": 1, "generation": 2, "reason": "silent", "report": "figures"}
    hang = Hang(1, 2, "silent", "figures")
    failing = Hang(1, 2, "silent", "figures", every_step_fails=True)
    for told, seen in [
        ({"hung": hung}, Look(True, hang)),
        ({"hung": hung | {"every_step_fails": True}}, Look(True, failing)),
        ({"hung": hung, "standstill_seconds": 6.0}, Look(False, hang)),
        ({"standstill_seconds": 6.0}, Look(False)),
        ({"hung": "nonsense"}, Look(False)),
    ]:
        answer = f"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\r\n{json.dumps(told)}"
        assert look_at(answer.encode()) == seen, told


@pytest.mark.parametrize(
    ("works", "looks_at_hangs", "looks"), [(True, (8,), (2, 8, 14, 15)), (False, (8, 14), (2, 8, 14))]
)
def test_a_look_that_shows_a_hang_shows_whether_the_router_works(
    works: bool, looks_at_hangs: tuple[int, ...], looks: tuple[int, ...]
) -> None:
    supervisor = Supervisor(2, 60, 60)
    supervisor.begin(0)
    supervisor.health(True, 1)
    shell = Shell.__new__(Shell)
    shell._supervisor = supervisor
    hang = Hang(1, 0, "silent", "figures")
    actions: list[Action] = []
    for now in looks:
        actions += shell._handle_looks(Looked(works, hang) if now in looks_at_hangs else Looked(False, None), now)
    assert AskStacks(ChildId(1, 1)) in actions
    assert (Kill(ROUTER) in actions) == (not works)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 fine\r\n\r\n",
        b"SSH-2.0 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfour",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\nfour",
    ],
)
def test_what_is_no_answer_in_http_is_none(answer: bytes) -> None:
    with answering(answer, answer) as port:
        assert look(HOST, port) == Look(None)
        assert work_seen(HOST, port) is None


METRICS = b"""tgi_request_failure{err="generation"} 2
tgi_request_failure{err="overloaded"} 7
tgi_batch_inference_success{method="prefill"} 30
tgi_batch_inference_success{method="decode"} 4e2
"""


def test_counters_of_a_router_that_is_killed_while_it_writes_them_are_none() -> None:
    """Wherever its answer ends, and whether its length was told or not: nothing is raised."""
    head = b"HTTP/1.0 200 OK\r\n"
    told = head + f"content-length: {len(METRICS)}\r\n\r\n".encode() + METRICS
    untold = head + b"\r\n" + METRICS
    answers = [told, *(told[:end] for end in range(len(told))), *(untold[:end] for end in range(len(untold)))]
    with answering(*answers) as port:
        seen = [work_seen(HOST, port) for _ in answers]
    assert seen[0] == Work(num_blamed=2, num_steps=430)
    assert set(seen[1 : 1 + len(told)]) == {None}
    assert {None, Work(), Work(2, 30)} <= set(seen[1 + len(told) :])
    for nonsense in (b"NaN", b"+Inf", b"two"):
        with answering(head + b"\r\ntgi_batch_inference_success{} " + nonsense) as port:
            assert work_seen(HOST, port) is None, nonsense


def test_a_look_that_fails_ends_no_looking_and_is_told_once() -> None:
    looks, seen_enough, told = [], threading.Event(), []
    reasons = [ValueError("a label"), ValueError("a label"), OSError("no file"), None, ValueError("a label")]

    def look_and_fail() -> None:
        reason = reasons[len(looks)] if len(looks) < len(reasons) else None
        looks.append(reason)
        if len(looks) > len(reasons):
            seen_enough.set()
        if reason is not None:
            raise reason

    poller = Poller(look_and_fail, 0.001, told.append)
    try:
        assert not seen_enough.wait(0.1), "nobody has asked for it yet"
        assert not looks
        poller.watch(True)
        assert seen_enough.wait(60)
        assert told == ["ValueError: a label", "OSError: no file", "ValueError: a label"]
        poller.watch(False)
        time.sleep(0.1)  # one may be under way
        num_looks = len(looks)
        time.sleep(0.1)
        assert len(looks) <= num_looks + 1
    finally:
        poller.end()


def test_who_does_not_answer_in_time_has_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ANSWER_SECONDS", 0.05)
    with socket.create_server((HOST, 0)) as silent:
        assert look(HOST, silent.getsockname()[1]) == Look(None)


def test_a_stopped_process_has_no_pulse_and_threads_that_end_meanwhile_do_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        pulse = Pulse()
        assert not pulse.beats(process.pid), "nothing is known of it yet"
        until = time.monotonic() + 30
        while not pulse.beats(process.pid):
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGSTOP)
        while pulse.beats(process.pid):
            assert time.monotonic() < until
            time.sleep(0.1)

        def ended(_: Path) -> bytes:
            raise ProcessLookupError

        monkeypatch.setattr(Path, "read_bytes", ended)
        fresh = Pulse()
        assert [fresh.beats(process.pid) for _ in range(2)] == [False, False]
    finally:
        process.kill()
        process.wait()
