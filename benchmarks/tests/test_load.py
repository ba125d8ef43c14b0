"""The load generator against a real socket, and processes that leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from benchmarks import load, processes

EVENTS = [
    {"choices": [{"text": "on"}]},
    {"choices": [{"text": "ce"}]},
    {"choices": [], "usage": {"completion_tokens": 7}},
]


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


def answer_of(size: int | None) -> bytes:
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in EVENTS) + b"data: [DONE]\n\n"
    if size is None:
        return b"HTTP/1.1 200 OK\r\n\r\n" + body
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, size)


@pytest.mark.parametrize("size", [None, 5, 17, 1000])
def test_texts_and_counts_are_read_from_any_framing(size: int | None):
    assert load.completion_text(answer_of(size)) == "once"
    assert load.completion_tokens(answer_of(size)) == 7


def test_a_server_that_counts_nothing_is_not_believed_to():
    assert load.completion_tokens(b"HTTP/1.1 200 OK\r\n\r\ndata: [DONE]\n\n") is None


@pytest.mark.parametrize(("answer", "complaint"), [(answer_of(9), None), (b"HTTP/1.1 503 Busy\r\n\r\n", "503")])
def test_measure_reads_whole_answers_and_refuses_errors(answer: bytes, complaint: str | None):
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    port, bodies = listener.getsockname()[1], [load.completion("x", "m", 7)] * 2
    if complaint:
        with pytest.raises(RuntimeError, match=complaint):
            load.measure(port, "/v1/completions", bodies)
    else:
        measured = load.measure(port, "/v1/completions", bodies)
        assert measured.answers == [answer] * 2
        assert all(0 < first <= measured.seconds for first in measured.first_token_seconds)
    listener.close()


def test_descendants_end_also_when_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "LOGS", tmp_path)
    shell = "trap '' TERM; sleep 61 & echo $! > pid; echo said; trap - TERM; wait"
    program = processes.Program("parent", ["sh", "-c", f"cd {tmp_path}; {shell}"], {})
    with processes.started(program) as process:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert process.poll() is None
        child = int((tmp_path / "pid").read_text())
        assert set(processes.family(process.pid)) == {process.pid, child}
        assert processes.resident_bytes(process.pid) > 0
        processes.send(processes.family(process.pid), signal.SIGSTOP)
    assert process.poll() is not None
    deadline = time.monotonic() + 30
    while not gone(child):  # killed, but not yet dead
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert processes.last_words("parent") == "said"


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be collected."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return not listed.stdout.strip() or listed.stdout.strip().startswith("Z")
