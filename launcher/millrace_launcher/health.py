"""Asks the router how it and its workers are, from threads of their own: a hung router cannot hang us."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

_ANSWER_SECONDS = 5.0
_MAX_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True)
class Hang:
    """A rank that the router found to hang: `generation` is that of its group, 0 when the router does not know it."""

    rank: int
    generation: int
    reason: str
    report: str


def get(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Status and body; None when nobody answers in HTTP. A plain socket: an HTTP library would cost start-up time."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_SECONDS) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as answer:
                words = answer.readline().split(maxsplit=2)
                head, _, body = answer.read(_MAX_ANSWER_BYTES).partition(b"\r\n\r\n")
    except OSError:
        return None
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        return None
    return int(words[1]), _unchunked(body) if b"transfer-encoding: chunked" in head.lower() else body


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        parts.append(rest[:length])
        body = rest[length + 2 :] if length else b""
    return b"".join(parts)


def is_healthy(host: str, port: int) -> bool:
    """Whether `GET /health` is answered with 200."""
    answer = get(host, port, "/health")
    return answer is not None and answer[0] == 200


def find_hang(host: str, port: int) -> Hang | None:
    """The rank that hangs, if `GET /livez` names one."""
    answer = get(host, port, "/livez")
    if answer is None or answer[0] != 503:
        return None
    try:
        hung = json.loads(answer[1])["hung"]
        return Hang(int(hung["rank"]), int(hung["generation"]), str(hung["reason"]), str(hung["report"]))
    except (ValueError, TypeError, KeyError):
        return None


class Poller:
    """Calls `look` every `interval` seconds while `watch(True)` holds; `look` may take its time."""

    def __init__(self, look: Callable[[], None], interval: float) -> None:
        self._look = look
        self._interval = interval
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
                with contextlib.suppress(OSError):
                    self._look()
