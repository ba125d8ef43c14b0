"""One stream of steps: plan after plan is computed, in order, by the one thread that computes.

The transport receives plan n+1 and sends result n while this thread computes, without the interpreter: with a second
plan always there, it never waits for either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from millrace_worker.proto import worker_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from millrace_worker.pulse import Pulse


class StepEngine(Protocol):
    """What a stream needs of an engine. `abandon` is called by other threads, also in the middle of a step."""

    def reset(self) -> None: ...

    def compute(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult: ...

    def abandon(self) -> None: ...


class Plans(Protocol):
    """A stream of the transport, as far as steps need it."""

    def receive(self) -> bytes | None: ...

    def send(self, answer: bytes, /) -> None: ...

    def on_end(self, call: Callable[[], None] | None, /) -> None: ...


class StepStream:
    """`die` is told of a fault after which this process cannot go on; `pulse` shows what `compute` does."""

    def __init__(self, engine: StepEngine, plans: Plans, die: Callable[[str], None], pulse: Pulse) -> None:
        self._engine = engine
        self._plans = plans
        self._die = die
        self._pulse = pulse

    def compute(self) -> None:
        """Computes plan after plan from empty rows, until the client has sent its last one or is gone. The step that
        runs at the end is answered, plans that wait are not. Raises what ended the stream, if that was an error."""
        self._plans.on_end(self._engine.abandon)
        try:
            self._engine.reset()
            while (plan := self._plans.receive()) is not None:
                result = self._step(worker_pb2.StepPlan.FromString(plan))
                self._plans.send(result.SerializeToString())
        finally:
            self._plans.on_end(None)  # else it could be the next stream's steps that are abandoned

    def _step(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        self._pulse.is_computing = True
        try:
            result = self._engine.compute(plan)
            self._pulse.progress += 1
            return result
        except BaseException as error:  # a panic in a kernel is no `Exception`, and must not end the stream in silence
            reason = f"this rank cannot go on: {error}"
            self._die(reason)
            raise RuntimeError(reason) from error
        finally:
            self._pulse.is_computing = False
