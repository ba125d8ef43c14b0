"""Asks the router whether it is healthy, from a thread of its own so that a hung router cannot hang the launcher."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

_ANSWER_SECONDS = 5.0


def is_healthy(host: str, port: int) -> bool:
    """Whether `GET /health` is answered with 200. A plain socket: an HTTP library would cost start-up time."""
    request = f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_SECONDS) as connection:
            connection.sendall(request.encode())
            words = connection.makefile("rb").readline().split(maxsplit=2)
    except OSError:
        return False
    return len(words) >= 2 and words[0].startswith(b"HTTP/1.") and words[1] == b"200"


class HealthPoller:
    """Calls `report(ok)` every `interval` seconds while `watch(True)` holds."""

    def __init__(self, host: str, port: int, report: Callable[[bool], None], interval: float = 0.05) -> None:
        self._place = (host, port)
        self._report = report
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
                    self._report(is_healthy(*self._place))
