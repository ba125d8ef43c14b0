"""The parts of a step add up to what passes between two results, and only steps that decode are counted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from millrace_worker.proto import worker_pb2
from millrace_worker.pulse import Pulse

from benchmarks import step_parts
from benchmarks.step_parts import KERNEL, ROWS, Parts

NUM_STEPS = 2 * step_parts.STEPS_AT_ONCE
TICK = 1.0


class Clock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.ticks = count()

    def perf_counter(self) -> float:
        return next(self.ticks) * TICK


def plan(step: int, num_rows: int, tokens: int = 1) -> bytes:
    made = worker_pb2.StepPlan(step=step)
    made.work.samples = bytes([1]) * num_rows
    made.work.counts = tokens.to_bytes(4, "little") * num_rows
    return made.SerializeToString()


class Engine:
    """One kernel in the forward pass, another in sampling."""

    def __init__(self, kernels: Parts) -> None:
        self.kernels = kernels

    def reset(self) -> None: ...

    def abandon(self) -> None: ...

    def compute(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        self.kernels |= {f"{KERNEL}Chain.run": 0.4, f"{KERNEL}Sampler.sample": 0.1}
        timings = worker_pb2.Timings(inputs_us=100_000, forward_us=500_000, sample_us=200_000, total_us=850_000)
        return worker_pb2.StepResult(step=plan.step, timings=timings)


class Plans:
    def __init__(self, plans: list[bytes]) -> None:
        self.plans, self.answers = iter(plans), 0

    def receive(self) -> bytes | None:
        return next(self.plans, None)

    def send(self, answer: bytes, /) -> None:
        self.answers += 1

    def on_end(self, call: Callable[[], None] | None, /) -> None: ...


def steps_of(plans: list[bytes], monkeypatch: pytest.MonkeyPatch) -> list[Parts]:
    monkeypatch.setattr(step_parts, "time", Clock())
    steps: list[Parts] = []
    recorder = step_parts.Recorder(steps.extend)
    own = Plans(plans)
    step_parts.watched(recorder, Engine(recorder.kernels), own, pytest.fail, Pulse()).compute()
    assert own.answers == len(plans)
    return steps


def test_every_moment_belongs_to_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of([plan(step, 3) for step in range(NUM_STEPS)], monkeypatch)
    assert len(steps) == NUM_STEPS
    for parts in steps:
        assert parts.pop(ROWS) == 3
        # Five looks at the clock: plan there, plan read, computed, result written, result sent.
        assert sum(parts.values()) == pytest.approx(5 * TICK)
        assert parts[step_parts.FORWARD] == pytest.approx(0.1)
        assert parts[step_parts.SAMPLE] == pytest.approx(0.1)
        assert parts[step_parts.REST] == pytest.approx(TICK - 0.8)


def test_steps_with_prompts_and_of_other_batches_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [plan(0, 3, tokens=7)] + [plan(step, 3) for step in range(1, 41)]
    plans += [plan(step, 2) for step in range(41, NUM_STEPS)]
    settled = step_parts.settled(steps_of(plans, monkeypatch), 3)
    assert len(settled) == 32
    means = step_parts.means(settled)
    assert means[f"{KERNEL}Chain.run"] == pytest.approx(0.4e6)
    assert ROWS not in means


def test_kernels_are_as_before_when_nobody_watches() -> None:
    before = [getattr(kind, name) for kind, names in step_parts.KERNELS for name in names]
    with step_parts.Recorder(list.clear).watching():
        watched = [getattr(kind, name) for kind, names in step_parts.KERNELS for name in names]
    after = [getattr(kind, name) for kind, names in step_parts.KERNELS for name in names]
    assert not set(before) & set(watched)
    assert before == after
