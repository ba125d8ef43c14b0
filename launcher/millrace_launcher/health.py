"""Asks the router how it and its workers are, from threads of their own: a hung router cannot hang us."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from millrace_launcher.failures import Work

ANSWER_SECONDS = 5.0
_MAX_ANSWER_BYTES = 1 << 24
_BLAMED = b'tgi_request_failure{err="generation"}'
_STEPS = b"tgi_batch_inference_success{"


@dataclass(frozen=True)
class Hang:
    """A rank that the router found to hang: `generation` is that of its group, 0 when the router does not know it.
    `every_step_fails`: it answers, but has to be replaced like one that does not."""

    rank: int
    generation: int
    reason: str
    report: str
    every_step_fails: bool = False


def get(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Status and body; None when nobody answers in HTTP, or the answer ends too early: who writes it may be killed
    meanwhile. A plain socket: an HTTP library would cost start-up time.

    HTTP/1.0, whose answers come in one piece.
    """
    request = f"GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n"
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as answer:
                head, end, body = answer.read(_MAX_ANSWER_BYTES).partition(b"\r\n\r\n")
    except OSError:
        return None
    status, *fields = head.split(b"\r\n")
    words = status.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        return None
    return (int(words[1]), body) if end and _is_whole(fields, body) else None


def _is_whole(fields: Sequence[bytes], body: bytes) -> bool:
    """Whether `body` is as long as the head's `fields` say, if they do."""
    for line in fields:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return value.strip() == str(len(body)).encode()
    return True


def is_healthy(host: str, port: int) -> bool:
    """Whether `GET /health` is answered with 200."""
    answer = get(host, port, "/health")
    return answer is not None and answer[0] == 200


@dataclass(frozen=True)
class Look:
    """What `GET /livez` has shown. `works` None: nobody has answered, which can have other reasons than a router that
    hangs (its connections are all taken, there are no more files to open). `hang`: the rank that hangs, if one does."""

    works: bool | None
    hang: Hang | None = None


def look(host: str, port: int) -> Look:
    answer = get(host, port, "/livez")
    if answer is None:
        return Look(None)
    if answer[0] != 503:
        return Look(True)
    try:
        told = json.loads(answer[1])
        hung = told["hung"]
        fails = hung.get("every_step_fails") is True
        hang = Hang(int(hung["rank"]), int(hung["generation"]), str(hung["reason"]), str(hung["report"]), fails)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Look(False)
    return Look("standstill_seconds" not in told, hang)


def work_seen(host: str, port: int) -> Work | None:
    """What the router has counted, by `GET /metrics`; None when it does not answer, or with something else."""
    answer = get(host, port, "/metrics")
    if answer is None or answer[0] != 200:
        return None
    lines = answer[1].splitlines()
    try:
        return Work(num_blamed=_total(lines, _BLAMED), num_steps=_total(lines, _STEPS))
    except (ValueError, OverflowError):  # not a number; an endless one
        return None


def _total(lines: Sequence[bytes], prefix: bytes) -> int:
    """The sum of the counters whose lines begin so; 0 without any."""
    return sum(int(float(line.rsplit(maxsplit=1)[-1])) for line in lines if line.startswith(prefix))


class Poller:
    """Calls `look` every `interval` seconds while `watch(True)` holds; `look` may take its time. What it raises goes to
    `on_error`, the same once, and does not end the looking."""

    def __init__(self, look: Callable[[], None], interval: float, on_error: Callable[[str], None]) -> None:
        self._look = look
        self._interval = interval
        self._on_error = on_error
        self._last_error = ""
        self._wanted = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._poll, name="health", daemon=True).start()

    def watch(self, wanted: bool) -> None:
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    def end(self) -> None:
        self._ended.set()
        self._wanted.set()

    def _poll(self) -> None:
        while self._wanted.wait() and not self._ended.wait(self._interval):
            if self._wanted.is_set():
                self._look_once()

    def _look_once(self) -> None:
        try:
            self._look()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if said != self._last_error:
                self._last_error = said
                self._on_error(said)
