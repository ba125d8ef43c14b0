"""Memory that is refused anywhere in a step: the step fails, nothing else, and what is tried again says the same.
Refused is any torch operator of a step, and any call of the worker's own code."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import addressof, c_char
from mmap import mmap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from millrace_kernels import Exchange
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.engine import EngineParts
from millrace_worker.model import Model, in_rows, paged
from millrace_worker.models.choice import ModelAsk, choose, load
from millrace_worker.proto import worker_pb2
from millrace_worker.rows import RowsShape
from millrace_worker.sampling import Watermark
from millrace_worker.shared_memory import SharedMemoryGroup
from millrace_worker.shortage import is_out_of_memory, release_memory
from millrace_worker.worst_case import prefill_plan

from worker.tests.engine.faulty import SHORTAGES, AtCall, AtOperator, FaultyEngine, SmallRouter, Wanted
from worker.tests.engine.plans import PlanBook, greedy

from .checkpoints import VOCAB, Saved

PAGES, ROWS = 40, 4
# Operators of a step that are refused, and calls, each of some hundreds: drawn, or so many. As many as there are: all.
NUM_FAULTS = int(os.environ.get("MILLRACE_SOAK_FAULTS", "12"))
KINDS = [
    ("llama", "native", ""),
    ("llama", "native", cpu_kernels.OFF),
    ("mamba2", "native", ""),
    ("t5", "native", ""),
    ("llama", "transformers", cpu_kernels.OFF),
]


def model_of(saved: Saved, implementation: str, kernels: str, group: Group) -> Model:
    machine = cpu_kernels.find(kernels, 1)
    ask = ModelAsk(folder=saved.folder, dtype=torch.float32, device=torch.device("cpu"), group=group, kernels=machine)
    return load(ask, choose(saved.folder, implementation))


def engine_of(model: Model, group: Group) -> FaultyEngine:
    if model.page_size:
        paged(model).allocate_kv(PAGES)
    else:
        in_rows(model).allocate_rows(ROWS, 100)
    shape = RowsShape(
        max_rows=ROWS,
        max_sequence_tokens=100,
        page_size=model.page_size,
        num_pages=PAGES if model.page_size else 0,
        vocab_size=VOCAB,
        max_step_tokens=200,
        max_top_n_tokens=5,
        prompt_logprobs=True,
    )
    return FaultyEngine(EngineParts(model, group, torch.device("cpu"), Watermark()), shape)


def wanted() -> list[Wanted]:
    """Of all that sampling does, on prompts that a step computes in part."""
    rich = greedy(do_sample=True, seed=3, temperature=0.8, top_p=0.9, repetition_penalty=1.2, count_penalty=0.3)
    rich.top_n_tokens = rich.prompt_top_tokens = 3
    prompt = list(range(3, 40))
    return [
        Wanted(prompt[:9], greedy(), 3),
        Wanted(prompt, rich, 3, prompt_logprobs=True),
        Wanted(prompt[5:8], greedy(do_sample=True, seed=9, top_k=40), 3),
    ]


def run(engine: FaultyEngine, compute: Callable[[worker_pb2.StepPlan], Any], seed: int = 1) -> tuple[list[Any], int]:
    """From empty rows. The seed says how the prompts are cut."""
    engine.reset()
    router = SmallRouter(PlanBook(engine.shape.page_size, PAGES), ROWS, compute, seed)
    return router.run(wanted()), router.failed_steps


def faulty(engine: FaultyEngine, fault: AtOperator | AtCall, in_step: int) -> tuple[list[Any], int]:
    engine.fault, steps = None, 0

    def compute(plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        nonlocal steps
        steps += 1
        engine.fault = fault if steps == in_step else None
        result = engine.compute(plan)
        assert result.whole_step == result.out_of_memory == (steps == in_step and fault.left < 0)
        return result

    return run(engine, compute)


@pytest.mark.parametrize(("case", "implementation", "kernels"), KINDS, ids=[f"{c} {i} {k}" for c, i, k in KINDS])
def test_refused_anywhere_in_a_step_nothing_is_lost(
    case: str, implementation: str, kernels: str, saved: Callable[[str], Saved]
) -> None:
    engine = engine_of(model_of(saved(case), implementation, kernels, Group()), Group())
    undisturbed, failed = run(engine, engine.compute)
    assert failed == 0
    for kind in (AtOperator, AtCall):
        for step in (1, 2, 3):
            counted = kind(sys.maxsize, MemoryError())
            assert faulty(engine, counted, step) == (undisturbed, 0)
            places = range(sys.maxsize - counted.left)
            assert len(places) > 100
            for at in random.sample(places, min(len(places), NUM_FAULTS // 3)):
                error = random.choice(SHORTAGES)()
                assert faulty(engine, kind(at, error), step) == (undisturbed, 1), (kind, step, at)


def test_what_the_step_held_is_free_when_the_next_one_begins(saved: Callable[[str], Saved]) -> None:
    engine = engine_of(model_of(saved("llama"), "native", "", Group()), Group())
    held = []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        large = torch.empty(1000)
        held.append(weakref.ref(large))
        try:
            raise ValueError(f"of {len(large)}")
        except ValueError as error:
            raise torch.OutOfMemoryError("no more") from error

    engine._model.logits = logits  # pyright: ignore[reportAttributeAccessIssue]
    book = PlanBook(engine.shape.page_size, PAGES)
    book.admit(0, [1, 2, 3])
    book.work(0)
    gc.disable()
    try:
        assert engine.compute(book.plan()).out_of_memory
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_stay_in_step_when_one_of_them_fails(size: int, saved: Callable[[str], Saved]) -> None:
    """Anywhere in a step, on any rank, for want of memory or not: all ranks answer alike and go on together."""
    case = "llama" if size == 2 else "bloom, 6 heads"
    memory = mmap(-1, Exchange.shared_bytes(size))
    address = addressof(c_char.from_buffer(memory))
    quiet: Any = SimpleNamespace(begin=lambda: None, count_step=lambda: None, is_abandoned=False)
    deadline = time.monotonic() + 500

    def check_time() -> None:
        assert time.monotonic() < deadline, "the other ranks do not come"

    groups = [
        SharedMemoryGroup(rank=rank, size=size, exchange=Exchange(address, rank, size, check_time), memory=quiet)
        for rank in range(size)
    ]
    threads = ThreadPoolExecutor(size)
    engines = list(threads.map(lambda group: engine_of(model_of(saved(case), "native", "", group), group), groups))

    def compute(plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        results = list(threads.map(lambda engine: engine.compute(plan), engines))
        said = {(one.whole_step, one.out_of_memory, len(one.failed) if one.whole_step else 0) for one in results}
        assert len(said) == 1
        return results[0]

    def undisturbed() -> list[Any]:
        for engine in engines[1:]:
            engine.reset()
        return run(engines[0], compute)[0]

    expected = undisturbed()
    for _ in range(25):
        steps = 0
        for engine in engines[1:]:
            engine.reset()

        def fails(plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
            nonlocal steps
            steps += 1
            if steps <= 3:
                for engine in random.sample(engines, random.choice([0, 1, 1, 2])):
                    error = random.choice([MemoryError(), torch.OutOfMemoryError("no"), RuntimeError("bad")])
                    engine.fault = random.choice([AtOperator, AtCall])(random.randrange(120), error)
            return compute(plan)

        found, failed = run(engines[0], fails)
        assert found == expected
        assert failed <= 3
    check_trials(engines, threads)
    assert undisturbed() == expected


def check_trials(engines: list[FaultyEngine], threads: ThreadPoolExecutor) -> None:
    """What one rank cannot take in `Prepare` is an error on all of them, which names it on the others."""

    def tried(engine: FaultyEngine) -> str:
        try:
            engine.trial(prefill_plan(engine.shape, 20))
        except (RuntimeError, MemoryError, ConnectionAbortedError) as error:
            return str(error)
        return ""

    assert set(threads.map(tried, engines)) == {""}
    sick = random.randrange(len(engines))
    engines[sick].fault = AtOperator(3, MemoryError("no more"))
    said = list(threads.map(tried, engines))
    assert said.pop(sick) == "no more"
    assert all(f"rank {sick}" in words for words in said), "in an exchange with it, or at the end"


@pytest.mark.parametrize(
    ("error", "is_shortage"),
    [
        (OSError(errno.ENOMEM, "mmap"), True),
        (OSError(errno.EIO, "disk"), False),
        (RuntimeError("can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_which_errors_are_want_of_memory(error: Exception, is_shortage: bool) -> None:
    assert is_out_of_memory(error) == is_shortage
    with pytest.raises(ValueError, match="library") as wrapped:
        raise ValueError("of a library") from error
    assert is_out_of_memory(wrapped.value) == is_shortage


def test_errors_that_name_each_other_have_an_end() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_out_of_memory(one)


def test_memory_goes_back_to_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append("device"))
    release_memory(torch.device("cuda"))
    glibc = SimpleNamespace(malloc_trim=lambda _: given_back.append("host"))
    # Other libraries for C have no such function.
    for library in (glibc, SimpleNamespace()):
        monkeypatch.setattr(ctypes, "CDLL", lambda _, library=library: library)
        release_memory(torch.device("cpu"))
    assert given_back == ["device", "host"]
