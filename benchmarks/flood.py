"""Clients that cost next to nothing: a fixed number that ask again when answered, or arrivals that wait for nobody."""

from __future__ import annotations

import json
import os
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PATIENCE_SECONDS = 120.0
PAUSE_SECONDS = 0.2
HEAD_BYTES = 2048
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Ask:
    """A request to be sent, and how many tokens its answer has."""

    data: bytes
    new_tokens: int


@dataclass(frozen=True)
class Answer:
    """What became of a request. Times are of one clock; `first` is that of the first event, 0 if there was none."""

    status: int
    retry_after: str
    content_type: str
    is_whole: bool
    new_tokens: int
    sent: float
    first: float
    ended: float


@dataclass
class _Connection:
    socket: socket.socket
    ask: Ask
    sent: float
    unsent: memoryview
    head: bytearray = field(default_factory=bytearray)
    tail: bytes = b""
    first: float = 0.0

    def take(self, chunk: bytes) -> None:
        if len(self.head) < HEAD_BYTES:
            self.head += chunk[: HEAD_BYTES - len(self.head)]
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        if not self.first and (b"data:" in chunk or b"data:" in self.head):
            self.first = time.perf_counter()

    def answer(self) -> Answer:
        lines = bytes(self.head).partition(b"\r\n\r\n")[0].decode("latin1").split("\r\n")
        status = int(lines[0].split(" ")[1]) if lines[0].startswith("HTTP/1.1 ") else 0
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return Answer(
            status=status,
            retry_after=headers.get("retry-after", ""),
            content_type=headers.get("content-type", ""),
            is_whole=status == 200 and b'"generated_text":"' in self.tail and b'{"error":' not in self.tail,
            new_tokens=self.ask.new_tokens,
            sent=self.sent,
            first=self.first,
            ended=time.perf_counter(),
        )


class Clients:
    """Connections to one server, of one request each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poller = select.epoll()
        self._open: dict[int, _Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def send(self, ask: Ask) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", self._port))
        one = _Connection(connection, ask, time.perf_counter(), memoryview(ask.data))
        self._open[connection.fileno()] = one
        self._poller.register(connection, select.EPOLLOUT)

    def wait(self, seconds: float) -> Iterator[Answer]:
        """Whatever ends within so many seconds; returns early when something has happened."""
        for number, _ in self._poller.poll(max(seconds, 0.0)):
            one = self._open[number]
            if not self._goes_on(number, one):
                self._poller.unregister(number)
                del self._open[number]
                one.socket.close()
                yield one.answer()

    def _goes_on(self, number: int, one: _Connection) -> bool:
        try:
            if one.unsent:
                one.unsent = one.unsent[one.socket.send(one.unsent) :]
                if not one.unsent:
                    self._poller.modify(number, select.EPOLLIN)
                return True
            chunk = one.socket.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        one.take(chunk)
        return bool(chunk)

    def drain(self) -> Iterator[Answer]:
        """The answers that have not come yet."""
        end = time.perf_counter() + PATIENCE_SECONDS
        while self._open and time.perf_counter() < end:
            yield from self.wait(1.0)
        for one in self._open.values():
            yield one.answer()


def yield_to_server() -> None:
    """From here on this process takes what the server leaves: on few cores its clients would cost the server steps."""
    os.nice(15)


def ask(path: str, body: dict[str, object], new_tokens: int, key: str = "") -> Ask:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    return Ask(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data, new_tokens)


def in_turn(port: int, make: Callable[[], Ask], num_clients: int, seconds: float) -> list[Answer]:
    """So many clients, each of which asks again when it is answered, for so long; their last answers are waited for.

    Who is refused asks again soon; only whole answers count.
    """
    clients, answers = Clients(port), []
    end = time.perf_counter() + seconds
    due = [0.0] * num_clients
    while (now := time.perf_counter()) < end:
        for _ in range(sum(when <= now for when in due)):
            clients.send(make())
        due = [when for when in due if when > now]
        for answer in clients.wait(0.1 if due else 0.5):
            answers.append(answer)
            due.append(0.0 if answer.is_whole else time.perf_counter() + PAUSE_SECONDS)
    return [answer for answer in [*answers, *clients.drain()] if answer.is_whole]


def arriving(
    port: int, make: Callable[[], Ask], rate: float, seconds: float, watch: Callable[[], None]
) -> list[Answer]:
    """Arrivals at random (Poisson), `rate` in a second, whatever becomes of others. `watch` is called every second."""
    clients, answers, chance = Clients(port), [], random.Random(1)
    begin = time.perf_counter()
    next_arrival, next_look = begin, begin
    while (now := time.perf_counter()) < begin + seconds:
        while next_arrival <= now:
            clients.send(make())
            next_arrival += chance.expovariate(rate)
        if next_look <= now:
            watch()
            next_look = now + 1.0
        answers.extend(clients.wait(min(next_arrival, next_look) - now))
    return [*answers, *clients.drain()]
