"""Sides that take turns: each does the same work in every round while the others are stopped (SIGSTOP).

Figures from different runs do not compare, so a claim is the ratio of two sides in one run, round by round. A turn
begins with a short request that is not counted: who was stopped has cold caches, and timers that are all due at once.
Then come as many batches as make it long enough. Each round begins with another side.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks import load, models, processes

# Ours is measured for about so long in a turn, if one batch takes less; so many batches at most.
TURN_SECONDS = 1.0
MOST_BATCHES = 20
# What is asked of one stream at the beginning of a turn.
WAKING_TOKENS = 8


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


@dataclass(frozen=True)
class Prompts:
    """Of a turn, made before it begins: one to wake the side, and those of each batch."""

    waking: list[str]
    batches: list[list[str]]


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

    def turn(self, point: Point, prompts: Prompts) -> Answer:
        """Runs batches while nothing else runs, and notes the memory held after them. Answers their mean."""
        self.signal(signal.SIGCONT)
        try:
            self.asked.ask(prompts.waking, WAKING_TOKENS)
            answers = [self.asked.ask(batch, point.new_tokens) for batch in prompts.batches]
        finally:
            self.signal(signal.SIGSTOP)
        self.resident_bytes = max(self.resident_bytes, processes.resident_bytes(self.process.pid))
        return mean(answers)

    def signal(self, number: int) -> None:
        processes.send(processes.family(self.process.pid), number)

    def rate(self, point: Point) -> float:
        """Generated tokens per second, of the median round."""
        return point.streams * point.new_tokens / statistics.median(a.seconds for a in self.answers[point])

    def first_token(self, point: Point) -> float:
        return statistics.median(a.first_token_seconds for a in self.answers[point])


def mean(answers: list[Answer]) -> Answer:
    """As one batch, with the texts of the last."""
    seconds = statistics.fmean(answer.seconds for answer in answers)
    return Answer(seconds, statistics.fmean(answer.first_token_seconds for answer in answers), answers[-1].texts)


Starter = Callable[[Path, ExitStack], Side]


@dataclass(frozen=True)
class Outcome:
    """What a contest over one model gave: the sides, ours first, and why others are missing or stopped. `bandwidth`:
    bytes per second that the machine read beside the points of one stream, the median; 0 where nobody looked.
    `products`: operations per second of its matrix products beside each other point."""

    model: str
    points: list[Point]
    sides: list[Side]
    failures: dict[str, str]
    bandwidth: float = 0.0
    products: dict[Point, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Looks:
    """What the machine itself can do, asked before and after each point while all sides are stopped: of one stream, and
    of several."""

    bandwidth: Callable[[], float]
    products: Callable[[], float]


def contest(
    model: str,
    starters: dict[str, Starter],
    points: list[Point],
    limits: Limits,
    looks: Looks | None = None,
) -> Outcome:
    """Starts the sides, then measures all of them at each point. Only the first side's failure ends the contest."""
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
        speeds: list[float] = []
        products: dict[Point, float] = {}
        for point in points:
            look = looks and (looks.bandwidth if point.streams == 1 else looks.products)
            seen = [look()] if look else []
            measure(point, sides, folder, limits, failures)
            seen += [look()] if look else []
            if point.streams == 1:
                speeds += seen
            elif seen:
                products[point] = statistics.fmean(seen)
        return Outcome(model, points, sides, failures, statistics.median(speeds or [0.0]), products)


def warm_up(side: Side, folder: Path, points: list[Point]) -> None:
    """A short batch, the same for every side; its texts show that all of them serve the same model."""
    point = Point(points[0].prompt_tokens, 16, min(16, max(point.streams for point in points)))
    prompts = models.prompts(folder, point.streams, point.prompt_tokens, seed=0)
    side.opening = side.turn(point, Prompts(prompts[:1], [prompts])).texts


def measure(point: Point, sides: list[Side], folder: Path, limits: Limits, failures: dict[str, str]) -> None:
    begun, ours = time.monotonic(), sides[0]
    num_batches = 1
    for turn in range(limits.rounds):
        spent = time.monotonic() - begun
        if turn and spent * (turn + 1) / turn > limits.point_seconds:
            return
        prompts = prompts_of(point, turn, folder, num_batches)
        for side in rotated(sides, turn):
            if side.name in failures:
                continue
            try:
                if turn == 0 and side is not ours and num_batches > 1:
                    side.turn(point, prompts_of(point, turn, folder, 1))  # a rehearsal, as ours has had
                answer = side.turn(point, prompts)
                if turn == 0 and side is ours and answer.seconds < TURN_SECONDS:
                    num_batches = min(math.ceil(TURN_SECONDS / answer.seconds), MOST_BATCHES)
                    prompts = prompts_of(point, turn, folder, num_batches)
                    answer = side.turn(point, prompts)
                side.answers.setdefault(point, []).append(answer)
            except (RuntimeError, OSError) as error:
                if side is ours:
                    raise
                side.answers.pop(point, None)
                failures[side.name] = f"stopped at {point}: {error} ({processes.last_words(side.name)})"


def rotated(sides: list[Side], turn: int) -> list[Side]:
    """Ours begins the first round."""
    first = turn % len(sides)
    return sides[first:] + sides[:first]


def prompts_of(point: Point, turn: int, folder: Path, num_batches: int) -> Prompts:
    """The same for every side; no prompt is seen twice in a contest, also where ours showed that one batch is short."""

    def made(number: int, streams: int) -> list[str]:
        # Never the warm-up's seed, 0.
        seed = 1 + number + 100 * turn + 10_000 * point.streams + 10_000_000 * point.prompt_tokens
        return models.prompts(folder, streams, point.prompt_tokens, seed)

    waking, first = (0, 2) if num_batches == 1 else (1, 3)
    return Prompts(made(waking, 1), [made(first + number, point.streams) for number in range(num_batches)])
