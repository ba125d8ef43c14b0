"""A router in miniature: hands out pages and writes plans. It never sees a token id that the worker chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from millrace_worker.answer import NO_TOKEN
from millrace_worker.engine import Engine
from millrace_worker.proto import worker_pb2


def u32(values: Sequence[int]) -> bytes:
    return np.asarray(values, dtype="<u4").tobytes()


def read_u32(data: bytes) -> list[int]:
    return np.frombuffer(data, dtype="<u4").tolist()


def read_f32(data: bytes) -> list[float]:
    return np.frombuffer(data, dtype="<f4").tolist()


def greedy(**over: object) -> worker_pb2.Sampling:
    """Every feature neutral but those named."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
    return worker_pb2.Sampling(**(neutral | over))  # pyright: ignore[reportArgumentType]


@dataclass
class Held:
    """A sequence as its router knows it."""

    sequence: int
    known: int
    computed: int
    pages: list[int]


@dataclass
class PlanBook:
    """Collects what the next plan says; `plan()` writes it. Pages are dealt from the free ones in a shuffled order;
    with a page size of 0 there are none."""

    page_size: int
    num_pages: int
    seed: int = 0
    free: list[int] = field(default_factory=list)
    held: dict[int, Held] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        self.free = np.random.default_rng(self.seed).permutation(self.num_pages).tolist()
        self._begin()

    def _begin(self) -> None:
        self._plan = worker_pb2.StepPlan()
        self._grown: list[tuple[int, int, int]] = []
        self._work: list[tuple[int, int, int, int]] = []
        self._released: list[int] = []
        self._copies: list[tuple[int, int]] = []
        self._admitted: set[int] = set()

    def admit(
        self, row: int, tokens: Sequence[int], *, sequence: int | None = None, pages: Sequence[int] = (), **fields: Any
    ) -> None:
        """`pages` are shared ones whose tokens count as computed, the last of them perhaps in part."""
        computed = min(len(pages) * self.page_size, len(tokens) - 1)
        self.held[row] = Held(row + 100 if sequence is None else sequence, len(tokens), computed, list(pages))
        self._admitted.add(row)
        plain = {"num_prompt_tokens": len(tokens), "sampling": greedy()}
        self._plan.admitted.append(
            worker_pb2.Admission(sequence=self.held[row].sequence, row=row, token_ids=u32(tokens), **(plain | fields))
        )

    def release(self, row: int) -> None:
        held = self.held.pop(row)
        self.free.extend(held.pages)
        self._released.append(row)

    def copy(self, source: int, target: int) -> None:
        self._copies.append((source, target))

    def take_page(self) -> int:
        return self.free.pop()

    def work(self, row: int, count: int | None = None) -> bool:
        """The next `count` known tokens of the row (all that are left, without it); samples when none is left then."""
        held = self.held[row]
        count = held.known - held.computed if count is None else min(count, held.known - held.computed)
        start, end = held.computed, held.computed + count
        while self.page_size and len(held.pages) * self.page_size < end:
            self._grown.append((row, len(held.pages), self.free.pop()))
            held.pages.append(self._grown[-1][2])
        samples = end == held.known
        held.computed, held.known = end, held.known + samples
        self._work.append((row, start, count, int(samples)))
        return samples

    def plan(self) -> worker_pb2.StepPlan:
        self.steps += 1
        plan = self._plan
        plan.step = self.steps
        plan.released = u32(self._released)
        for admission in plan.admitted:
            admission.pages = u32(self.held[admission.row].pages)
        grown = [entry for entry in self._grown if entry[0] not in self._admitted]
        if grown:
            plan.grown.rows, plan.grown.indices, plan.grown.pages = (u32(part) for part in zip(*grown, strict=True))
        if self._copies:
            plan.copies.sources, plan.copies.targets = (u32(part) for part in zip(*self._copies, strict=True))
        if self._work:
            rows, starts, counts, samples = zip(*self._work, strict=True)
            plan.work.rows, plan.work.starts, plan.work.counts = u32(rows), u32(starts), u32(counts)
            plan.work.samples = bytes(samples)
        self._begin()
        return plan

    def plan_and(self, engine: Engine, answers: Answers) -> None:
        """Writes the plan, lets the engine compute it, reads the answer."""
        plan = self.plan()
        answers.read(plan, engine.compute(plan))


@dataclass
class Answers:
    """What was sampled, by row, in the order of the steps."""

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[float]] = field(default_factory=dict)
    prompt_top: dict[int, list[list[tuple[int, float]]]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def read(self, plan: worker_pb2.StepPlan, result: worker_pb2.StepResult) -> None:
        assert result.step == plan.step
        rows = read_u32(plan.work.rows)
        sampled = [row for row, flag in zip(rows, plan.work.samples, strict=True) if flag]
        for row, token, logprob in zip(sampled, read_u32(result.token_ids), read_f32(result.logprobs), strict=True):
            if token != NO_TOKEN:
                self.token_ids.setdefault(row, []).append(token)
                self.logprobs.setdefault(row, []).append(logprob)
        values = iter(read_f32(result.prompt_logprobs.logprobs))
        counts = read_u32(result.prompt_logprobs.counts)
        for entry, count in zip(read_u32(result.prompt_logprobs.work), counts, strict=True):
            self.prompt_logprobs.setdefault(rows[entry], []).extend(next(values) for _ in range(count))
        assert next(values, None) is None
        self._read_prompt_top(rows, result.prompt_logprobs)
        self.failed |= {failure.sequence: failure.message for failure in result.failed}

    def _read_prompt_top(self, rows: list[int], told: worker_pb2.PromptLogprobs) -> None:
        top = told.top_tokens
        pairs = iter(list(zip(read_u32(top.token_ids), read_f32(top.logprobs), strict=True)))
        places = [
            rows[entry] for entry, n in zip(read_u32(told.work), read_u32(told.counts), strict=True) for _ in range(n)
        ]
        for row, count in zip(places, read_u32(top.counts) if top.counts else [], strict=bool(top.counts)):
            self.prompt_top.setdefault(row, []).append([next(pairs) for _ in range(count)])
        assert next(pairs, None) is None
