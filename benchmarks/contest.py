"""Sides that take turns: each does the same work in every round while the others are stopped (SIGSTOP).

Figures from different runs do not compare, so a claim is the ratio of two sides in one run, round by round.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks import load, models, processes


@dataclass(frozen=True)
class Point:
    """One row of a table: so many streams at once, each with so many tokens in and out."""

    prompt_tokens: int
    new_tokens: int
    streams: int

    @property
    def tokens(self) -> int:
        return self.streams * (self.prompt_tokens + self.new_tokens)


@dataclass(frozen=True)
class Answer:
    """A batch as its client saw it; the first token's seconds are those of the median stream."""

    seconds: float
    first_token_seconds: float
    texts: list[str]


@dataclass(frozen=True)
class Limits:
    """At most so many rounds at a point, and none begun that would pass so many seconds; one round always."""

    rounds: int
    point_seconds: float


class Asked(Protocol):
    def ask(self, prompts: list[str], new_tokens: int) -> Answer: ...


@dataclass(frozen=True)
class Server:
    """Asked through HTTP, by streamed /v1/completions; `extra` goes into each body."""

    port: int
    model: str
    extra: dict[str, Any] = field(default_factory=dict)

    def ask(self, prompts: list[str], new_tokens: int) -> Answer:
        bodies = [load.completion(prompt, self.model, new_tokens) | self.extra for prompt in prompts]
        measured = load.measure(self.port, "/v1/completions", bodies)
        if "stream_options" in self.extra:
            counted = {load.completion_tokens(answer) for answer in measured.answers}
            if counted != {new_tokens}:
                raise RuntimeError(f"asked for {new_tokens} tokens of each stream, generated {counted}")
        texts = [load.completion_text(answer) for answer in measured.answers]
        return Answer(measured.seconds, statistics.median(measured.first_token_seconds), texts)


@dataclass(frozen=True)
class InProcess:
    """Asked through pipes, as `lines` says."""

    process: subprocess.Popen[str]
    folder: Path

    def ask(self, prompts: list[str], new_tokens: int) -> Answer:
        self._say({"prompts": models.encode(self.folder, prompts), "new_tokens": new_tokens})
        ran = json.loads(self._heard())
        if any(len(ids) != new_tokens for ids in ran["ids"]):
            raise RuntimeError(f"asked for {new_tokens} tokens of each stream, generated fewer")
        first = statistics.median(ran["first_token_seconds"])
        return Answer(ran["seconds"], first, models.decode(self.folder, ran["ids"]))

    def wait_ready(self) -> None:
        if self._heard() != "ready\n":
            raise processes.DidNotStartError("it is not ready")

    def _say(self, asked: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def _heard(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise processes.DidNotStartError(f"the process ended with {self.process.wait(30)}")
        return line


@dataclass
class Side:
    """One contestant and what was measured of it."""

    name: str
    process: subprocess.Popen[str]
    asked: Asked
    about: str = ""
    answers: dict[Point, list[Answer]] = field(default_factory=dict)
    resident_bytes: int = 0
    opening: list[str] = field(default_factory=list)

    def turn(self, point: Point, prompts: list[str]) -> Answer:
        """Runs a batch while nothing else runs; notes the memory held after it."""
        self.signal(signal.SIGCONT)
        try:
            answer = self.asked.ask(prompts, point.new_tokens)
        finally:
            self.signal(signal.SIGSTOP)
        self.resident_bytes = max(self.resident_bytes, processes.resident_bytes(self.process.pid))
        return answer

    def signal(self, number: int) -> None:
        processes.send(processes.family(self.process.pid), number)

    def rate(self, point: Point) -> float:
        """Generated tokens per second, of the median round."""
        return point.streams * point.new_tokens / statistics.median(a.seconds for a in self.answers[point])

    def first_token(self, point: Point) -> float:
        return statistics.median(a.first_token_seconds for a in self.answers[point])


Starter = Callable[[Path, ExitStack], Side]


@dataclass(frozen=True)
class Outcome:
    """What a contest over one model gave: the sides, ours first, and why others are missing or stopped."""

    model: str
    points: list[Point]
    sides: list[Side]
    failures: dict[str, str]


def contest(model: str, starters: dict[str, Starter], points: list[Point], limits: Limits) -> Outcome:
    """Starts the sides, then measures all of them at each point. Only the first side's failure ends the contest."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    folder = models.path(model)
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        sides: list[Side] = []
        for name, starter in starters.items():
            try:
                with ExitStack() as own:  # what does not start is ended at once, what does with the contest
                    side = starter(folder, own)
                    warm_up(side, folder, points)
                    stack.enter_context(own.pop_all())
                sides.append(side)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failures[name] = f"did not start: {error} ({processes.last_words(name)})"
                if not sides:
                    raise processes.DidNotStartError(f"{name} {failures[name]}") from error
        for point in points:
            measure(point, sides, folder, limits, failures)
        return Outcome(model, points, sides, failures)


def warm_up(side: Side, folder: Path, points: list[Point]) -> None:
    """A short batch, the same for every side; its texts show that all of them serve the same model."""
    point = Point(points[0].prompt_tokens, 16, min(16, max(point.streams for point in points)))
    prompts = models.prompts(folder, point.streams, point.prompt_tokens, seed=0)
    side.opening = side.turn(point, prompts).texts


def measure(point: Point, sides: list[Side], folder: Path, limits: Limits, failures: dict[str, str]) -> None:
    begun = time.monotonic()
    for turn in range(limits.rounds):
        spent = time.monotonic() - begun
        if turn and spent * (turn + 1) / turn > limits.point_seconds:
            return
        prompts = models.prompts(folder, point.streams, point.prompt_tokens, seed=seed_of(point, turn))
        for side in sides:
            if side.name in failures:
                continue
            try:
                side.answers.setdefault(point, []).append(side.turn(point, prompts))
            except (RuntimeError, OSError) as error:
                if side is sides[0]:
                    raise
                side.answers.pop(point, None)
                failures[side.name] = f"stopped at {point}: {error} ({processes.last_words(side.name)})"


def seed_of(point: Point, turn: int) -> int:
    """Another for each batch of a contest, and never the warm-up's 0: no prompt is seen twice."""
    return 1 + turn + 100 * point.streams + 100_000 * point.prompt_tokens
