"""HTTP/1.1 over asyncio's streams: as little as the load needs, and nothing that hides how a connection ended.

A library would retry, pool and wrap errors; here every broken connection is a finding.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_MAX_HEAD_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16


class BrokenError(Exception):
    """The connection could not be made, ended early, or what came over it is no HTTP."""


@dataclass(frozen=True)
class Place:
    """Where the server is, and the key to it."""

    host: str
    port: int
    tls: bool = False
    base: str = ""
    api_key: str | None = None

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> Place:
        """Raises `ValueError` for what is no http or https URL."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"), api_key)

    def head(self, method: str, path: str, length: int | None = None) -> bytes:
        """The request's head; `length` of a JSON body, if there is one."""
        lines = [f"{method} {self.base}{path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if length is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def post(self, path: str, body: bytes) -> bytes:
        return self.head("POST", path, len(body)) + body


@dataclass(frozen=True)
class Head:
    """Status line and headers of an answer; names are lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


class Connection:
    """One connection, for one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._head = Head(0)
        self.reusable = False

    @classmethod
    async def open(cls, place: Place) -> Connection:
        context = ssl.create_default_context() if place.tls else None
        try:
            pair = await asyncio.open_connection(place.host, place.port, ssl=context, limit=_MAX_HEAD_BYTES)
        except OSError as error:
            raise BrokenError(f"no connection: {error.strerror or error}") from None
        return cls(*pair)

    async def send(self, data: bytes) -> None:
        """Raises `BrokenError` when the other side is gone."""
        self.reusable = False
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise BrokenError(f"the request could not be sent: {error.strerror or error}") from None

    async def read_head(self) -> Head:
        while True:
            data = await self._until(b"\r\n\r\n")
            first, *rest = data.decode("latin-1").split("\r\n")
            words = first.split(maxsplit=2)
            if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
                raise BrokenError(f"no HTTP: {first[:60]!r}")
            if words[1] != "100":
                break
        pairs = (line.partition(":") for line in rest if line)
        self._head = Head(int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs})
        return self._head

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. `reusable` is set when it has ended as HTTP says."""
        headers = self._head.headers
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int((await self._until(b"\r\n")).partition(b";")[0] or b"0", 16):
                yield (await self._exactly(size + 2))[:-2]
            await self._until(b"\r\n")
        elif "content-length" in headers:
            rest = int(headers["content-length"])
            while rest:
                piece = await self._exactly(min(rest, _PIECE_BYTES))
                rest -= len(piece)
                yield piece
        else:
            while piece := await self._some():
                yield piece
            return
        self.reusable = headers.get("connection", "").lower() != "close"

    async def body(self, at_most: int = 1 << 22) -> bytes:
        """The whole body; raises `BrokenError` for one that is larger than `at_most`."""
        data = bytearray()
        async for piece in self.pieces():
            data += piece
            if len(data) > at_most:
                raise BrokenError(f"an answer of more than {at_most} bytes")
        return bytes(data)

    def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """For clients that do not speak HTTP as they should."""
        return self._reader, self._writer

    def close(self) -> None:
        """At once: what the other side still sends is answered with a reset."""
        self._writer.transport.abort()

    async def _until(self, mark: bytes) -> bytes:
        try:
            return (await self._reader.readuntil(mark))[: -len(mark)]
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            raise BrokenError(_ended(error)) from None

    async def _exactly(self, count: int) -> bytes:
        try:
            return await self._reader.readexactly(count)
        except (OSError, EOFError) as error:
            raise BrokenError(_ended(error)) from None

    async def _some(self) -> bytes:
        try:
            return await self._reader.read(_PIECE_BYTES)
        except OSError as error:
            raise BrokenError(_ended(error)) from None


def _ended(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the connection broke: {error.strerror or error}"
    return "the connection ended early" if isinstance(error, EOFError) else "a line without end"


async def get(place: Place, path: str, seconds: float = 10.0) -> tuple[int, bytes]:
    """Status and body of a GET over a connection of its own. Raises `BrokenError`, also when the time is up."""
    try:
        async with asyncio.timeout(seconds):
            connection = await Connection.open(place)
            try:
                await connection.send(place.head("GET", path))
                head = await connection.read_head()
                return head.status, await connection.body()
            finally:
                connection.close()
    except TimeoutError:
        raise BrokenError(f"GET {path} was not answered within {seconds:g} s") from None


async def get_json(place: Place, path: str) -> dict[str, Any]:
    """Raises `BrokenError` for anything but a JSON object with status 200."""
    status, body = await get(place, path)
    if status != 200:
        raise BrokenError(f"GET {path}: status {status}")
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BrokenError(f"GET {path}: no JSON object")
    return value
