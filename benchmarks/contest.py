"""Sides that take turns: each does the same work in every round while the others are stopped (SIGSTOP).

Figures from different runs do not compare, so a claim is the ratio of two sides in one run, round by round. A batch
that is short is asked several times in a turn, after one that is not counted: who was stopped has cold caches, and
timers that are all due at once.
"""

from __future__ import annotations

import functools
import json
import math
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

# Ours is measured for about so long in a turn, if one batch takes less; so many batches at most.
TURN_SECONDS = 1.0
MOST_BATCHES = 20


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

    def turn(self, point: Point, prompts: Callable[[int], list[str]], repeats: int | None = None) -> tuple[Answer, int]:
        """Runs a batch while nothing else runs, and `repeats` more, which then count in its place; notes the memory
        held after them. `prompts` gives those of a batch. Without `repeats` the first says how many; answered too.
        """
        self.signal(signal.SIGCONT)
        try:
            first = self.asked.ask(prompts(0), point.new_tokens)
            repeats = repeats_of(first) if repeats is None else repeats
            again = [self.asked.ask(prompts(1 + number), point.new_tokens) for number in range(repeats)]
        finally:
            self.signal(signal.SIGSTOP)
        self.resident_bytes = max(self.resident_bytes, processes.resident_bytes(self.process.pid))
        return mean(again or [first]), repeats

    def signal(self, number: int) -> None:
        processes.send(processes.family(self.process.pid), number)

    def rate(self, point: Point) -> float:
        """Generated tokens per second, of the median round."""
        return point.streams * point.new_tokens / statistics.median(a.seconds for a in self.answers[point])

    def first_token(self, point: Point) -> float:
        return statistics.median(a.first_token_seconds for a in self.answers[point])


def repeats_of(first: Answer) -> int:
    """How many batches like this one make a turn long enough; none where it is so itself."""
    return 0 if first.seconds >= TURN_SECONDS else min(math.ceil(TURN_SECONDS / first.seconds), MOST_BATCHES)


def mean(answers: list[Answer]) -> Answer:
    """As one batch, with the texts of the last."""
    seconds = statistics.fmean(answer.seconds for answer in answers)
    return Answer(seconds, statistics.fmean(answer.first_token_seconds for answer in answers), answers[-1].texts)


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
    side.opening = side.turn(point, lambda _: prompts, repeats=0)[0].texts


def measure(point: Point, sides: list[Side], folder: Path, limits: Limits, failures: dict[str, str]) -> None:
    begun, repeats = time.monotonic(), None
    for turn in range(limits.rounds):
        spent = time.monotonic() - begun
        if turn and spent * (turn + 1) / turn > limits.point_seconds:
            return
        prompts = prompts_of(point, turn, folder)
        for side in sides:
            if side.name in failures:
                continue
            try:
                answer, repeats = side.turn(point, prompts, repeats)
                side.answers.setdefault(point, []).append(answer)
            except (RuntimeError, OSError) as error:
                if side is sides[0]:
                    raise
                side.answers.pop(point, None)
                failures[side.name] = f"stopped at {point}: {error} ({processes.last_words(side.name)})"


def prompts_of(point: Point, turn: int, folder: Path) -> Callable[[int], list[str]]:
    """The prompts of each batch of a turn, the same for every side; no prompt is seen twice in a contest."""

    @functools.cache
    def batch(number: int) -> list[str]:
        # Never the warm-up's seed, 0.
        seed = 1 + number + 100 * turn + 10_000 * point.streams + 10_000_000 * point.prompt_tokens
        return models.prompts(folder, point.streams, point.prompt_tokens, seed)

    return batch
