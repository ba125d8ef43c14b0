"""Streams read event by event, many at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Transcript:
    """What one client received."""

    indices: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None


def events(url: str, inputs: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    body = {"inputs": inputs, "parameters": {"details": True} | parameters}
    with httpx.stream("POST", f"{url}/generate_stream", json=body, timeout=300) as answer:
        if answer.status_code != 200:
            answer.read()
            raise AssertionError(f"{answer.status_code}: {answer.text}")
        for line in answer.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line[5:])


def read(url: str, inputs: str, started: threading.Event | None = None, **parameters: Any) -> Transcript:
    """The whole stream; `started` is set with its first token."""
    transcript = Transcript()
    for event in events(url, inputs, **parameters):
        if "error" in event:
            transcript.error = event["error"]
            continue
        transcript.indices.append(event["index"])
        transcript.ids.append(event["token"]["id"])
        if started is not None:
            started.set()
        if event["details"]:
            transcript.finish_reason = event["details"]["finish_reason"]
    return transcript


class Crowd:
    """Several streams at once, each with its own prompt and parameters."""

    def __init__(self, url: str, requests: list[tuple[str, dict[str, Any]]]):
        self._pool = ThreadPoolExecutor(len(requests))
        self._started = [threading.Event() for _ in requests]
        self._futures: list[Future[Transcript]] = [
            self._pool.submit(read, url, inputs, started, **parameters)
            for (inputs, parameters), started in zip(requests, self._started, strict=True)
        ]

    def wait_started(self) -> None:
        """Until every stream has its first token."""
        for event in self._started:
            assert event.wait(120), "a stream had no token for 120 s"

    def transcripts(self) -> list[Transcript]:
        try:
            return [future.result(300) for future in self._futures]
        finally:
            self._pool.shutdown()

    def give_up(self) -> None:
        """Waits for streams whose server is gone, whatever they have come to."""
        for future in self._futures:
            future.exception(300)
        self._pool.shutdown()


def crowd_ids(url: str, requests: list[tuple[str, dict[str, Any]]]) -> list[list[int]]:
    """The ids of every stream, all having ended well."""
    transcripts = Crowd(url, requests).transcripts()
    for transcript in transcripts:
        assert transcript.error is None, transcript.error
        assert transcript.indices == list(range(1, len(transcript.ids) + 1))
    return [transcript.ids for transcript in transcripts]


def mixed_requests(count: int, new_tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Prompts of different lengths, every other one sampled with a seed of its own."""
    made = []
    for index in range(count):
        inputs = f"{index}: " + "the quick brown fox jumps over the lazy dog " * (1 + index % 4)
        parameters: dict[str, Any] = {"max_new_tokens": new_tokens}
        if index % 2:
            parameters |= {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "seed": 1000 + index}
        made.append((inputs, parameters))
    return made
