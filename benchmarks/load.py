"""A load generator that costs next to nothing: one raw connection per stream, bytes counted, nothing parsed."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What a batch of streams took."""

    seconds: float
    first_token_seconds: list[float]


async def _stream(port: int, path: str, body: dict[str, Any], started: float) -> float:
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    received, first = bytearray(), 0.0
    while chunk := await reader.read(1 << 16):
        received += chunk
        if not first and b"data:" in received:
            first = time.perf_counter() - started
    writer.close()
    if b" 200 " not in received[:32] or b'"error":' in received:
        raise RuntimeError(received[:400].decode(errors="replace"))
    return first


async def _streams(port: int, path: str, bodies: list[dict[str, Any]]) -> Measured:
    started = time.perf_counter()
    firsts = await asyncio.gather(*(_stream(port, path, body, started) for body in bodies))
    return Measured(time.perf_counter() - started, list(firsts))


def measure(port: int, path: str, bodies: list[dict[str, Any]]) -> Measured:
    """Sends all bodies at once and reads every stream to its end. Raises on anything but success."""
    return asyncio.run(_streams(port, path, bodies))


def completion(prompt: str, model: str, new_tokens: int) -> dict[str, Any]:
    """The body of a streamed greedy /v1/completions."""
    return {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
