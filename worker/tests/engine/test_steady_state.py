"""Decoding the same rows step after step: what the host's code allocates on the device, and what it does per row.

The model is a stand-in that allocates nothing, so that whatever is allocated is ours.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.proto import worker_pb2
from millrace_worker.rows import RowsShape
from millrace_worker.sampling import Watermark
from millrace_worker.step import Batch
from millrace_worker.worst_case import all_features
from torch.profiler import ProfilerActivity, profile

from .plans import greedy, u32

VOCAB, CONTEXT, PAGE_SIZE, WARM, STEPS = 512, 20, 16, 4, 8
SEEDED = greedy(do_sample=True, seed=5, temperature=0.7, top_k=50, top_p=0.9)


class StillModel:
    """Returns the same tensors in every step."""

    def __init__(self, max_rows: int) -> None:
        self.vocab_size = VOCAB
        self._hidden = torch.zeros(max_rows * CONTEXT, 1)
        self._scores, self._logits = torch.randn(max_rows, VOCAB), torch.empty(max_rows, VOCAB)

    def plan(self, batch: Batch) -> Batch:
        return batch

    def hidden(self, token_ids: torch.Tensor, *_: object) -> torch.Tensor:
        return self._hidden[: len(token_ids)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits[: len(hidden)].copy_(self._scores[: len(hidden)])


class Decoding:
    """Rows that all decode; no page is needed after the admission."""

    def __init__(self, num_rows: int, samplings: list[worker_pb2.Sampling]) -> None:
        pages = -(-(CONTEXT + WARM + STEPS + 2) // PAGE_SIZE)
        self.shape = RowsShape(
            max_rows=num_rows,
            max_sequence_tokens=pages * PAGE_SIZE,
            page_size=PAGE_SIZE,
            num_pages=num_rows * pages,
            vocab_size=VOCAB,
            max_step_tokens=num_rows * CONTEXT,
            max_top_n_tokens=5,
        )
        parts = EngineParts(
            model=StillModel(num_rows),  # pyright: ignore[reportArgumentType]
            group=Group(),
            device=torch.device("cpu"),
            watermark=Watermark(),
        )
        self.engine = Engine(parts, self.shape)
        plan = worker_pb2.StepPlan(step=1)
        for row in range(num_rows):
            plan.admitted.add(
                sequence=row + 1,
                row=row,
                token_ids=u32([1 + row % 7] * CONTEXT),
                num_prompt_tokens=CONTEXT,
                pages=u32(range(row * pages, (row + 1) * pages)),
                sampling=samplings[row % len(samplings)],
            )
        self._work(plan, start=0, count=CONTEXT)
        self.plans = [plan] + [self._decode(step) for step in range(2, WARM + STEPS + 2)]
        for plan in self.plans[: WARM + 1]:
            self.compute(plan)

    def _decode(self, step: int) -> worker_pb2.StepPlan:
        plan = worker_pb2.StepPlan(step=step)
        self._work(plan, start=CONTEXT + step - 2, count=1)
        return plan

    def _work(self, plan: worker_pb2.StepPlan, start: int, count: int) -> None:
        num_rows = self.shape.max_rows
        plan.work.rows, plan.work.starts = u32(range(num_rows)), u32([start] * num_rows)
        plan.work.counts, plan.work.samples = u32([count] * num_rows), bytes([1] * num_rows)

    def compute(self, plan: worker_pb2.StepPlan) -> worker_pb2.StepResult:
        result = self.engine.compute(plan)
        assert not result.failed, result.failed[0].message
        return result

    def go_on(self) -> None:
        for plan in self.plans[WARM + 1 :]:
            self.compute(plan)


def allocations(run: Callable[[], object]) -> list[int]:
    """Bytes of each block of memory that torch allocated meanwhile, inside of its operators too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events: Any = profiled.profiler.kineto_results.events()  # the stub of an event lacks its bytes
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


def test_allocations_are_seen() -> None:
    scores = torch.randn(3, VOCAB)
    assert allocations(lambda: torch.empty(1000)) == [4000]
    assert scores.nbytes in allocations(lambda: scores.logsumexp(1))  # in between: its result is small
    assert allocations(lambda: torch.neg(scores, out=scores)) == []


@pytest.mark.parametrize("num_rows", [1, 16])
def test_a_steady_greedy_step_allocates_nothing_on_the_device(num_rows: int) -> None:
    assert allocations(Decoding(num_rows, [greedy()]).go_on) == []


@pytest.mark.parametrize("features", ["seeded", "everything", "mixed"])
def test_a_steady_step_with_features_allocates_nothing_of_the_vocabularys_width(features: str) -> None:
    shape = Decoding(1, [greedy()]).shape
    samplings = {
        "seeded": [SEEDED],
        "everything": [all_features(shape)],
        "mixed": [greedy(), SEEDED, greedy(frequency_penalty=0.5), all_features(shape)],
    }
    num_rows = 8
    sizes = allocations(Decoding(num_rows, samplings[features]).go_on)
    assert max(sizes) < num_rows * VOCAB * 4


def calls(decoding: Decoding) -> Counter[str]:
    """How often each function is called in the steady steps, Python's and C's."""
    counted: Counter[str] = Counter()

    def count(frame, event, argument):
        if event == "call":
            counted[f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}"] += 1
        elif event == "c_call":
            counted[f"{argument.__qualname__}"] += 1

    # Collections of garbage call what libraries have asked them to, hypothesis among them.
    gc.collect()
    gc.disable()
    sys.setprofile(count)
    try:
        decoding.go_on()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counted


@pytest.mark.parametrize("sampling", [greedy(), SEEDED], ids=["greedy", "seeded"])
def test_a_steady_step_makes_the_same_calls_for_4_rows_and_for_256(sampling: worker_pb2.Sampling) -> None:
    few, many = calls(Decoding(4, [sampling])), calls(Decoding(256, [sampling]))
    assert few == many
    assert sum(few.values()) > 50 * STEPS


def test_parameters_are_gathered_when_the_rows_change_and_not_before() -> None:
    decoding = Decoding(4, [SEEDED])
    state = decoding.engine._rows.sampling
    rows = np.arange(4)
    blocks = state.blocks(rows, VOCAB)
    decoding.go_on()
    assert state.blocks(rows, VOCAB) is blocks
    state.set(3, greedy(), 1)
    assert state.blocks(rows, VOCAB) is not blocks
