"""Steps that fail at a chosen point, and a router in small that tries what has failed again."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import millrace_worker
import torch
from millrace_worker.engine import Engine
from millrace_worker.proto import worker_pb2
from torch.utils._python_dispatch import TorchDispatchMode

from .plans import Answers, PlanBook

SOURCES = str(Path(millrace_worker.__file__).parent)
SHORTAGES: tuple[Callable[[], Exception], ...] = (
    lambda: torch.OutOfMemoryError("tried to allocate 1 GiB"),
    lambda: MemoryError("Unable to allocate 1. GiB for an array"),
    lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    lambda: RuntimeError("std::bad_alloc"),
)


class AtOperator(TorchDispatchMode):
    """Raises in place of the torch operator of that number."""

    def __init__(self, at: int, error: Exception) -> None:
        super().__init__()
        self.left, self._error = at, error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == -1:
            raise self._error
        return func(*args, **(kwargs or {}))


class AtCall:
    """Raises in place of the call of that number that the worker's own code makes: of numpy, torch or itself."""

    def __init__(self, at: int, error: Exception) -> None:
        self.left, self._error = at, error

    def __enter__(self) -> None:
        sys.setprofile(self._count)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(SOURCES):
            self.left -= 1
            if self.left == -1:
                raise self._error


class FaultyEngine(Engine):
    """`fault`: what the next step meets, once."""

    fault: AtOperator | AtCall | None = None

    def step(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        fault, self.fault = self.fault, None
        if fault is None:
            return super().step(plan)
        with fault:
            return super().step(plan)


@dataclass
class Wanted:
    """A request, and what it has got so far."""

    prompt: list[int]
    sampling: worker_pb2.Sampling
    num_new: int
    prompt_logprobs: bool = False
    output: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output


class SmallRouter:
    """Runs requests to their end, whatever fails: a failed step's sequences leave their rows and enter others."""

    def __init__(self, book: PlanBook, num_rows: int, compute: Callable[[worker_pb2.StepPlan], Any], seed: int) -> None:
        self._book, self._compute, self._random = book, compute, random.Random(seed)
        self._free = list(range(num_rows))
        self.failed_steps = 0

    def run(self, requests: Sequence[Wanted]) -> list[list[int]]:
        waiting, running = list(requests), dict[int, Wanted]()
        while waiting or running:
            while waiting and self._free:
                row, wanted = self._free.pop(0), waiting.pop(0)
                asks = wanted.prompt_logprobs and not wanted.output
                more = {"sampling": wanted.sampling, "prompt_logprobs": asks}
                self._book.admit(row, wanted.tokens, num_prompt_tokens=len(wanted.prompt), **more)
                running[row] = wanted
            for row in running:
                self._book.work(row, self._random.choice([1, 5, 16, 64]))
            plan = self._book.plan()
            result = self._compute(plan)
            if result.whole_step:
                self.failed_steps += 1
                assert len(result.failed) == len(running)
                waiting = [running[row] for row in running] + waiting
                for row in list(running):
                    self._leave(row, running)
                continue
            assert not result.failed, result.failed[0].message
            answers = Answers()
            answers.read(plan, result)
            for row, tokens in answers.token_ids.items():
                running[row].output += tokens
                if len(running[row].output) == running[row].num_new:
                    self._leave(row, running)
        return [wanted.output for wanted in requests]

    def _leave(self, row: int, running: dict[int, Wanted]) -> None:
        running.pop(row)
        self._book.release(row)
        self._free.append(row)
