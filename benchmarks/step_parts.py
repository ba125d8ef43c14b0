"""Which part of a stream's steps takes how long: a worker's `StepStream` whose engine, plans and kernels are watched.

Every moment between two results belongs to one part, so that the parts of a step add up to what it takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import millrace_kernels
from millrace_worker.proto import worker_pb2
from millrace_worker.pulse import Pulse
from millrace_worker.stream import Plans, StepEngine, StepStream

KERNELS = [
    (millrace_kernels.Linear, ["apply", "lookup"]),
    (millrace_kernels.QuantizedLinear, ["apply"]),
    (millrace_kernels.Experts, ["apply"]),
    (millrace_kernels.Norm, ["add_norm"]),
    (millrace_kernels.Attention, ["plan", "attend"]),
    (millrace_kernels.Chain, ["run"]),
    (millrace_kernels.Sampler, ["sample"]),
]
KERNEL = "kernel "
WAIT, READ, INPUTS, FORWARD, SAMPLE, REST, WRITE, SEND = (
    "waiting for a plan: router, transport",
    "a plan from its bytes",
    "Python of inputs",
    "Python of the forward pass",
    "Python of sampling and answer",
    "the rest of the engine's step",
    "a result to its bytes",
    "handing the result to the transport",
)
# Not a time: how many rows decoded; 0 of a step with prompts in it.
ROWS = "rows"
# How many steps' parts are kept before they are written.
STEPS_AT_ONCE = 64

Parts = dict[str, float]


class Recorder:
    """The parts of each step, in seconds, and of each kernel. `keep` is called with many steps at once."""

    def __init__(self, keep: Callable[[list[Parts]], None]) -> None:
        self._keep = keep
        self._steps: list[Parts] = []
        self._now = time.perf_counter()
        self._parts: Parts = {}
        self.kernels: Parts = {}

    def part(self, name: str) -> None:
        """What has passed since the last part was over is this one's."""
        now = time.perf_counter()
        self._parts[name] = now - self._now
        self._now = now

    def computed(self, plan: worker_pb2.StepPlan, result: worker_pb2.StepResult) -> None:
        """An engine's step is over: it says itself how its time divides, and kernels have counted theirs."""
        now = time.perf_counter()
        whole, self._now = now - self._now, now
        inputs, forward, sample = (
            us / 1e6 for us in (result.timings.inputs_us, result.timings.forward_us, result.timings.sample_us)
        )
        sampling = self.kernels.get(f"{KERNEL}Sampler.sample", 0.0)
        kernels = sum(self.kernels.values())
        own = {INPUTS: inputs, FORWARD: forward - (kernels - sampling), SAMPLE: sample - sampling}
        rest = whole - inputs - forward - sample
        num_rows = len(plan.work.samples)
        decodes = plan.work.counts == (1).to_bytes(4, "little") * num_rows
        self._parts |= own | self.kernels | {REST: rest, ROWS: float(num_rows if decodes else 0)}
        self.kernels.clear()

    def end(self) -> None:
        self._steps.append(self._parts)
        self._parts = {}
        if len(self._steps) == STEPS_AT_ONCE:
            self._keep(self._steps)
            self._steps = []
            self._now = time.perf_counter()  # writing is no part of a step

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts what kernels take. A model is loaded inside: its layers keep the methods that they find."""
        kept = [(kind, name, getattr(kind, name)) for kind, names in KERNELS for name in names]
        for kind, name, was in kept:
            setattr(kind, name, self._timed(f"{KERNEL}{kind.__name__}.{name}", was))
        try:
            yield
        finally:
            for kind, name, was in kept:
                setattr(kind, name, was)

    def _timed(self, label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.kernels[label] = self.kernels.get(label, 0.0) + time.perf_counter() - begun

        return timed


class WatchedEngine:
    def __init__(self, engine: StepEngine, recorder: Recorder) -> None:
        self._engine, self._recorder = engine, recorder
        self.reset, self.abandon = engine.reset, engine.abandon

    def compute(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        self._recorder.part(READ)
        self._recorder.kernels.clear()  # of `Prepare`
        result = self._engine.compute(plan)
        self._recorder.computed(plan, result)
        return result


class WatchedPlans:
    def __init__(self, plans: Plans, recorder: Recorder) -> None:
        self._plans, self._recorder = plans, recorder
        self.on_end = plans.on_end

    def receive(self) -> bytes | None:
        plan = self._plans.receive()
        self._recorder.part(WAIT)
        return plan

    def send(self, answer: bytes, /) -> None:
        self._recorder.part(WRITE)
        self._plans.send(answer)
        self._recorder.part(SEND)
        self._recorder.end()


def watched(
    recorder: Recorder, engine: StepEngine, plans: Plans, die: Callable[[str], None], pulse: Pulse
) -> StepStream:
    return StepStream(WatchedEngine(engine, recorder), WatchedPlans(plans, recorder), die, pulse)


def written_to(path: Path) -> Callable[[list[Parts]], None]:
    def keep(steps: list[Parts]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(parts) + "\n" for parts in steps))

    return keep


def read(path: Path) -> list[Parts]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def settled(steps: list[Parts], num_rows: int) -> list[Parts]:
    """Those in which as many rows decoded, without the tenth at either end of them."""
    full = [parts for parts in steps if parts[ROWS] == num_rows]
    return full[len(full) // 10 : -(len(full) // 10) or None]


def means(steps: list[Parts]) -> Parts:
    """Microseconds of each part, kernels among them, in a mean step."""
    names = dict.fromkeys(name for parts in steps for name in parts if name != ROWS)
    return {name: sum(parts.get(name, 0.0) for parts in steps) / len(steps) * 1e6 for name in names}
