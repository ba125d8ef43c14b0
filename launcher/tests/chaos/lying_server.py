"""A server that answers as the original does, and can be made to lie in its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

Events = list[bytes]
# Gets the number of the request, counted from 1, and the events of its answer; returns what is sent.
Lie = Callable[[int, Events], Events]


def token_events(body: dict[str, Any]) -> Events:
    """/generate_stream: each token's id follows from the prompt and its index."""
    count = body["parameters"]["max_new_tokens"]
    texts = [f" t{index}" for index in range(count)]
    events: Events = []
    for index in range(count):
        is_last = index == count - 1
        token = {"id": token_id(body["inputs"], index), "text": texts[index], "logprob": 0.0, "special": False}
        details = {"finish_reason": "length", "generated_tokens": count} if is_last else None
        text = "".join(texts) if is_last else None
        events.append(event({"index": index + 1, "token": token, "generated_text": text, "details": details}))
    return events


def delta_events(body: dict[str, Any]) -> Events:
    """/v1/chat/completions, streamed."""
    count = body["max_tokens"]
    events = [event({"choices": [{"delta": {"content": f" t{index}"}}]}) for index in range(count)]
    events.append(event({"choices": [{"delta": {}, "finish_reason": "length"}]}))
    events.append(event({"choices": [], "usage": {"completion_tokens": count}}))
    return [*events, b"data: [DONE]\n\n"]


def whole(body: dict[str, Any]) -> bytes:
    """/generate."""
    count = body["parameters"]["max_new_tokens"]
    tokens = [{"id": token_id(body["inputs"], index)} for index in range(count)]
    details = {"finish_reason": "length", "generated_tokens": count, "tokens": tokens}
    return json.dumps({"generated_text": "text", "details": details}).encode()


def token_id(prompt: str, index: int) -> int:
    return sum(prompt.encode()) % 1000 + index


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class LyingServer:
    """`lie` changes streams; `health` answers every GET but /info; `refuse` answers generating requests instead."""

    def __init__(self) -> None:
        self.lie: Lie = lambda _, events: events
        self.health = 200
        self.refusal: bytes | None = None
        self.requests = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Its URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        if method == "GET":
            body = b'{"max_total_tokens": 60, "max_input_tokens": 40}'
            status = 200 if path == "/info" else self.health
            writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            return True
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-le"))
        body = json.loads(await reader.readexactly(length))
        self.requests += 1
        if self.refusal is not None:
            writer.write(self.refusal)
            return True
        if path == "/generate":
            data = whole(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            return True
        events = token_events(body) if path == "/generate_stream" else delta_events(body)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in self.lie(self.requests, events):
            if not piece:
                return False
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await asyncio.sleep(0.001)
        return True
