"""Clients that vanish, that read slowly, that mean harm. They need no more than the URL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

from millrace_chaos.connection import BrokenError, Connection
from millrace_chaos.fault import Fault, Scene

_ROUTES = ("/generate_stream", "/generate_stream", "/generate", "/v1/completions")


@contextlib.asynccontextmanager
async def _connected(scene: Scene) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A raw connection, reset at the end. What breaks on it is no finding: the client is the one who misbehaves."""
    with contextlib.suppress(OSError, EOFError, BrokenError):
        connection = await Connection.open(scene.place)
        try:
            yield connection.raw()
        finally:
            connection.close()


def _request(scene: Scene, new_tokens: int) -> bytes:
    prompt = "go " * scene.chance.randint(1, 60)
    route = scene.chance.choice(_ROUTES)
    if route.startswith("/v1"):
        told = {"model": "-", "prompt": prompt, "max_tokens": new_tokens, "stream": True}
    else:
        told = {"inputs": prompt, "parameters": {"max_new_tokens": new_tokens}}
    return scene.place.post(route, json.dumps(told).encode())


class Disconnect(Fault):
    name = "disconnect"
    told = "clients that go away at random points: in the request, in the queue, in the prompt, in the answer"
    rounds = 400
    together = 16

    async def strike(self, scene: Scene) -> None:
        chance = random.Random(scene.chance.random())
        data = _request(scene, scene.new_tokens)
        sent = data[: chance.randint(1, len(data))] if chance.random() < 0.2 else data
        async with _connected(scene) as (reader, writer):
            writer.write(sent)
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.random() ** 2):
                    await reader.readexactly(chance.randint(1, 20_000))


class SlowReader(Fault):
    name = "slow-reader"
    told = "clients that take a few bytes of their answers at a time, or none"
    rounds = 24
    together = 8

    async def strike(self, scene: Scene) -> None:
        chance = random.Random(scene.chance.random())
        takes_nothing = chance.random() < 0.3
        async with _connected(scene) as (reader, writer):
            writer.write(_request(scene, scene.new_tokens))
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.5, 3.0)):
                    while takes_nothing or await reader.read(7):
                        await asyncio.sleep(0.05)


_HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
# What harmful clients send at once; every one is answered with a 4xx, or its connection is closed.
_HARMFUL: tuple[tuple[str, bytes], ...] = (
    ("noise", bytes(range(256)) * 8),
    ("a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 600),
    ("no HTTP", b"HELO there\r\n\r\n"),
    ("a version of its own", b"GET / HTTP/9.9\r\n\r\n"),
    ("a huge header", _HEAD + b"X-Filler: " + b"a" * 1_000_000 + b"\r\n\r\n"),
    ("many headers", _HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(5_000)) + b"\r\n"),
    ("a huge URL", b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("two lengths", _HEAD + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}"),
    ("a length below zero", _HEAD + b"Content-Length: -1\r\n\r\n"),
    ("a length without limit", _HEAD + b"Content-Length: 99999999999999\r\n\r\n{"),
    ("chunks that are none", _HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ("no JSON", _HEAD + b"Content-Length: 5\r\n\r\n\xff\xfe{{{"),
    ("deep JSON", _HEAD + b"Content-Length: 100011\r\n\r\n" + b'{"inputs":' + b"[" * 100_001),
    ("numbers without end", _HEAD + b"Content-Length: 50011\r\n\r\n" + b'{"inputs":' + b"9" * 50_001),
)
_TRICKLES: tuple[tuple[str, bytes, bytes], ...] = (
    ("a silent connection", b"", b""),
    ("half a request line", b"POST /gen", b""),
    ("a head byte by byte", _HEAD, b"x"),
    ("a body byte by byte", _HEAD + b"Content-Length: 4000\r\n\r\n{", b" "),
    ("chunks without end", _HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
)


class Hostile(Fault):
    name = "hostile"
    told = "noise, huge heads, wrong lengths, bodies byte by byte, connections that say nothing"
    rounds = 60
    together = 12

    async def strike(self, scene: Scene) -> None:
        chance = random.Random(scene.chance.random())
        if chance.random() < 0.5:
            await self._harm(scene, *chance.choice(_HARMFUL))
        else:
            await self._trickle(scene, *chance.choice(_TRICKLES)[1:], seconds=chance.uniform(0.5, 3.0))

    async def _harm(self, scene: Scene, what: str, data: bytes) -> None:
        answer = b""
        async with _connected(scene) as (reader, writer):
            writer.write(data)
            with contextlib.suppress(OSError):  # whoever is refused early may not get rid of the rest
                await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    answer = await reader.read(64)
        status = answer[9:12]
        if answer.startswith(b"HTTP/1.") and not status.startswith((b"4", b"505")):
            scene.problems.append(f"{what} was answered with status {status.decode(errors='replace')}")

    async def _trickle(self, scene: Scene, head: bytes, more: bytes, *, seconds: float) -> None:
        async with _connected(scene) as (_, writer):
            writer.write(head)
            for _ in range(round(seconds / 0.1)):
                writer.write(more)
                await writer.drain()
                await asyncio.sleep(0.1)
