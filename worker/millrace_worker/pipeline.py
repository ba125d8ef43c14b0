"""One stream of steps over three threads: plans are read, steps computed and results sent at the same time.

The reader parses plan n+1 while step n computes, and the caller of `results` sends result n while step n+1 computes.
What is computed keeps the order of the plans: there is one queue on each side of the one thread that computes.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Protocol

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millrace_worker.proto import worker_pb2
    from millrace_worker.pulse import Pulse
    from millrace_worker.rows import ParsedPlan


class StepEngine(Protocol):
    """What a stream needs of an engine. `parse` touches nothing of it: it runs while another plan is computed."""

    def reset(self) -> None: ...

    def parse(self, plan: worker_pb2.StepPlan) -> ParsedPlan: ...

    def compute_parsed(self, parsed: ParsedPlan) -> worker_pb2.StepResult: ...

    def abandon(self) -> None: ...


class StepPipeline:
    """`read`, `compute` and `results` run in a thread each, `compute` in the one that computes for the whole process.

    `die` is told of a fault after which this process cannot go on; `pulse` shows what `compute` does.
    """

    def __init__(self, engine: StepEngine, die: Callable[[str], None], pulse: Pulse) -> None:
        self._engine = engine
        self._die = die
        self._pulse = pulse
        self._ended = threading.Event()
        self._plans: queue.SimpleQueue[ParsedPlan | Exception | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[worker_pb2.StepResult | Exception | None] = queue.SimpleQueue()

    def end(self) -> None:
        """The step that runs is the last one: it is answered, plans that wait are not."""
        self._ended.set()
        self._engine.abandon()
        self._plans.put(None)

    def read(self, plans: Iterator[worker_pb2.StepPlan]) -> None:
        """Reads until the client has sent its last plan or is gone; after the last one the stream ends."""
        try:
            for plan in plans:
                self._plans.put(self._engine.parse(plan))
        except grpc.RpcError:
            self.end()  # nobody waits for what is still to be computed
        except Exception as error:
            self._plans.put(error)
        else:
            self._plans.put(None)

    def compute(self) -> None:
        """Computes plan after plan from empty rows. Whatever ends it ends `results` too."""
        try:
            self._engine.reset()
            while (parsed := self._plans.get()) is not None and not self._ended.is_set():
                if isinstance(parsed, Exception):
                    raise parsed
                self._results.put(self._step(parsed))
        except Exception as error:
            self._results.put(error)
        finally:
            self._results.put(None)

    def _step(self, parsed: ParsedPlan) -> worker_pb2.StepResult:
        self._pulse.is_computing = True
        try:
            result = self._engine.compute_parsed(parsed)
            self._pulse.progress += 1
            return result
        except BaseException as error:  # a panic in a kernel is no `Exception`, and must not end the stream in silence
            reason = f"this rank cannot go on: {error}"
            self._die(reason)
            raise RuntimeError(reason) from error
        finally:
            self._pulse.is_computing = False

    def results(self) -> Iterator[worker_pb2.StepResult]:
        """The results in the order of the plans; raises what ended the stream, if that was an error."""
        while (result := self._results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
