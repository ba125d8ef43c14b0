"""What rows with a grammar cost the device step after step, and rows beside them without one."""

from __future__ import annotations

import pytest
import torch
from millrace_worker.engine import Engine
from millrace_worker.grammar import Vocabulary
from millrace_worker.proto import worker_pb2

from worker.tests.engine.plans import u32
from worker.tests.engine.test_steady_state import allocations

from .noisy import VOCAB, NoisyModel, noisy_engine, sampling, seeded
from .test_generation import regex

ROWS, WARM, STEPS = 8, 4, 8
LONG = regex("[a-z ]{500,900}")


class StillModel(NoisyModel):
    """Allocates nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden = torch.zeros(ROWS, 1)
        self._logits = torch.empty(ROWS, VOCAB)

    def hidden(self, token_ids: torch.Tensor, positions: torch.Tensor, _: object) -> torch.Tensor:
        del positions
        return self._hidden[: len(token_ids)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits[: len(hidden)].copy_(self.scores[: len(hidden)])


def _steady(vocabulary: Vocabulary, samplings: list[worker_pb2.Sampling]) -> list[int]:
    """Bytes of each block that torch allocates in the steps after the first ones."""
    engine = noisy_engine(vocabulary, StillModel(), max_rows=ROWS)
    plans = [worker_pb2.StepPlan(step=step) for step in range(1, WARM + STEPS + 1)]
    for row in range(ROWS):
        asked = samplings[row % len(samplings)]
        plans[0].admitted.add(sequence=row + 1, row=row, token_ids=bytes(4), num_prompt_tokens=1, sampling=asked)
    for at, plan in enumerate(plans):
        plan.work.rows, plan.work.starts = u32(range(ROWS)), u32([at] * ROWS)
        plan.work.counts, plan.work.samples = u32([1] * ROWS), bytes([1] * ROWS)
    _compute(engine, plans[:WARM])
    return allocations(lambda: _compute(engine, plans[WARM:]))


def _compute(engine: Engine, plans: list[worker_pb2.StepPlan]) -> None:
    for plan in plans:
        assert not engine.compute(plan).failed


def test_rows_without_a_grammar_allocate_nothing(vocabulary: Vocabulary) -> None:
    assert _steady(vocabulary, [sampling()]) == []


@pytest.mark.parametrize(
    "samplings",
    [[sampling(LONG)], [sampling(LONG), sampling()], [seeded(LONG), sampling()]],
    ids=["all", "half", "seeded"],
)
def test_masks_allocate_nothing_of_the_vocabularys_width(
    vocabulary: Vocabulary, samplings: list[worker_pb2.Sampling]
) -> None:
    sizes = _steady(vocabulary, samplings)
    assert max(sizes, default=0) < VOCAB * 4
