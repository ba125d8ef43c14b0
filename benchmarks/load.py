"""A load generator that costs next to nothing: raw connections, one readiness loop, bytes kept, nothing parsed."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Measured:
    """What a batch of streams took, and the bytes that came back."""

    seconds: float
    first_token_seconds: list[float]
    answers: list[bytes]


@dataclass
class _Stream:
    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    first: float = 0.0


def _request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def measure(port: int, path: str, bodies: list[dict[str, Any]]) -> Measured:
    """Sends all bodies at once and reads every stream to its end. Raises on anything but success."""
    requests = [_request(path, body) for body in bodies]
    streams = [_Stream(socket.create_connection(("127.0.0.1", port))) for _ in bodies]
    poller = select.epoll()
    by_number = {stream.connection.fileno(): stream for stream in streams}
    started = time.perf_counter()
    for stream, request in zip(streams, requests, strict=True):
        stream.connection.sendall(request)
        poller.register(stream.connection, select.EPOLLIN)
    while by_number:
        ready = poller.poll(TIMEOUT_SECONDS)
        if not ready:
            raise RuntimeError(f"nothing came for {TIMEOUT_SECONDS} s")
        for number, _ in ready:
            stream = by_number[number]
            chunk = stream.connection.recv(1 << 16)
            stream.received += chunk
            if not stream.first and b"data:" in stream.received:
                stream.first = time.perf_counter() - started
            if not chunk:
                poller.unregister(number)
                del by_number[number]
    seconds = time.perf_counter() - started
    for stream in streams:
        stream.connection.close()
        if b" 200 " not in stream.received[:32] or b'"error":' in stream.received:
            raise RuntimeError(stream.received[:400].decode(errors="replace"))
    return Measured(seconds, [stream.first for stream in streams], [bytes(stream.received) for stream in streams])


def completion(prompt: str, model: str, new_tokens: int) -> dict[str, Any]:
    """The body of a streamed greedy /v1/completions."""
    return {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}


def completion_text(answer: bytes) -> str:
    """The text of a streamed /v1/completions."""
    return "".join(choice.get("text") or "" for event in _events(answer) for choice in event.get("choices", []))


def completion_tokens(answer: bytes) -> int | None:
    """How many tokens the server says it generated; none when it does not say."""
    usages = [event["usage"] for event in _events(answer) if event.get("usage")]
    return usages[-1]["completion_tokens"] if usages else None


def _events(answer: bytes) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream."""
    for line in _body(answer).split(b"\n"):
        if line.startswith(b"data: {"):
            yield json.loads(line[len(b"data: ") :])


def _body(answer: bytes) -> bytes:
    """An answer without its head and without the sizes of a chunked transfer."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body = bytearray()
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        body += rest[:length]
        rest = rest[length + 2 :]
    return bytes(body)
