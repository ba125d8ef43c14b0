"""One sequence's fault fails that sequence; a step's fault fails the step's sequences; the stream lives on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from millrace_worker.answer import NO_TOKEN
from millrace_worker.distributed import Group, Outcome, RankGoneError
from millrace_worker.engine import OUT_OF_MEMORY, Engine, EngineParts, RankLostError
from millrace_worker.proto import worker_pb2
from millrace_worker.work import PlanError

from .conftest import POSITIONS, VOCAB, Bench, Reference
from .plans import Answers, greedy, read_u32, u32


def _change(**fields: object) -> Callable[[worker_pb2.Admission], None]:
    def apply(admission: worker_pb2.Admission) -> None:
        for name, value in fields.items():
            setattr(admission, name, value)

    return apply


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_change(token_ids=u32([1, VOCAB])), "vocabulary"),
        (_change(token_ids=b""), "0 tokens"),
        (_change(token_ids=u32([1] * (POSITIONS + 1))), f"{POSITIONS + 1} tokens"),
        (_change(pages=u32([40])), "pool of 40 pages"),
        (_change(pages=u32(range(11))), "11 pages"),
        (_change(num_prompt_tokens=3), "num_prompt_tokens"),
        (lambda admission: admission.sampling.CopyFrom(greedy(top_n_tokens=6)), "top_n_tokens"),
    ],
)
def test_an_admission_that_cannot_be_taken_fails_alone(
    bench: Bench, reference: Reference, spoil: Callable[[worker_pb2.Admission], None], says: str
) -> None:
    bench.book.admit(0, [1, 2])
    bench.book.admit(1, [3, 4], sequence=55)
    for row in (0, 1):
        bench.book.work(row)
    plan = bench.book.plan()
    spoil(plan.admitted[1])
    result = bench.engine.compute(plan)
    assert [failure.sequence for failure in result.failed] == [55]
    assert says in result.failed[0].message
    expected = reference.greedy([1, 2], 3)
    assert read_u32(result.token_ids) == [expected[0], NO_TOKEN]

    # The next plan was on its way already: the failed row is passed over and named again.
    for row in (1, 0):
        bench.book.work(row)
    result = bench.engine.compute(bench.book.plan())
    assert [failure.sequence for failure in result.failed] == [55]
    assert read_u32(result.token_ids) == [NO_TOKEN, expected[1]]

    # Once released, its row serves the next one.
    bench.book.release(1)
    bench.book.admit(1, [3, 4])
    for row in (0, 1):
        bench.book.work(row)
    result = bench.engine.compute(bench.book.plan())
    assert not result.failed
    assert read_u32(result.token_ids) == [expected[2], reference.greedy([3, 4], 1)[0]]


def test_prompt_logprobs_that_were_not_prepared_are_refused(bench: Bench, parts: EngineParts) -> None:
    shape = bench.engine.shape
    engine = Engine(parts, type(shape)(**{**vars(shape), "prompt_logprobs": False}))
    bench.book.admit(0, [1, 2, 3], prompt_logprobs=True)
    bench.book.work(0)
    result = engine.compute(bench.book.plan())
    assert "prompt logprobs" in result.failed[0].message


def _duplicate_row(plan: worker_pb2.StepPlan) -> None:
    plan.work.rows, plan.work.starts = u32([0, 0]), u32([3, 3])


def _no_such_row(plan: worker_pb2.StepPlan) -> None:
    plan.work.rows = u32([0, 8])


def _nobody(plan: worker_pb2.StepPlan) -> None:
    plan.work.rows = u32([0, 5])


def _no_tokens(plan: worker_pb2.StepPlan) -> None:
    plan.work.counts = u32([1, 0])


def _unknown_tokens(plan: worker_pb2.StepPlan) -> None:
    plan.work.starts = u32([3, 17])


def _no_pages(plan: worker_pb2.StepPlan) -> None:
    plan.grown.CopyFrom(worker_pb2.Growth())


def _short_column(plan: worker_pb2.StepPlan) -> None:
    plan.work.starts = u32([4])


def _torn_column(plan: worker_pb2.StepPlan) -> None:
    plan.work.rows = plan.work.rows[:-1]


def _torn_release(plan: worker_pb2.StepPlan) -> None:
    plan.released = b"\1"


def _torn_growth(plan: worker_pb2.StepPlan) -> None:
    plan.grown.indices = b""


def _page_beyond(plan: worker_pb2.StepPlan) -> None:
    plan.grown.pages = u32([40])


def _copy_beyond(plan: worker_pb2.StepPlan) -> None:
    plan.copies.sources, plan.copies.targets = u32([0]), u32([40])


def _torn_copy(plan: worker_pb2.StepPlan) -> None:
    plan.copies.sources, plan.copies.targets = u32([0, 1]), u32([2])


def _taken_row(plan: worker_pb2.StepPlan) -> None:
    plan.admitted.add(sequence=77, row=0, token_ids=u32([1]), num_prompt_tokens=1, sampling=greedy())


@pytest.mark.parametrize(
    ("spoil", "says", "sequences"),
    [
        (_duplicate_row, "two work entries", [100]),
        (_no_such_row, "work rows: 8", [100]),
        (_nobody, r"nobody holds: \[5\]", [100]),
        (_no_tokens, "at least 1", [100, 101]),
        (_unknown_tokens, r"known tokens of rows \[1\]", [100, 101]),
        (_no_pages, r"pages of rows \[1\]", [100, 101]),
        (_short_column, "lengths", [100, 101]),
        (_torn_column, "7 bytes is not a whole number", [100]),
        (_torn_release, "1 bytes is not a whole number", [100, 101]),
        (_torn_growth, "lengths", [100, 101]),
        (_page_beyond, "pages: 40", [100, 101]),
        (_copy_beyond, "page 40", [100, 101]),
        (_torn_copy, "2 pages to copy to 1", [100, 101]),
        (_taken_row, "still holds", [77, 100, 101]),
    ],
)
def test_a_contradictory_plan_is_refused_whole_and_writes_nothing(
    bench: Bench, reference: Reference, spoil: Callable[[worker_pb2.StepPlan], None], says: str, sequences: list[int]
) -> None:
    for row, length in ((0, 3), (1, 16), (2, 5)):
        bench.book.admit(row, [7] * length)
        bench.book.work(row)
    first = bench.engine.compute(bench.book.plan())
    before = bench.pool.clone()
    for row in (0, 1):
        bench.book.work(row)  # row 1 grows by a page
    plan = bench.book.plan()
    spoil(plan)
    result = bench.engine.compute(plan)
    assert sorted(failure.sequence for failure in result.failed) == sequences
    messages = {failure.message for failure in result.failed}
    assert len(messages) == 1
    assert re.search(says, messages.pop())
    assert set(read_u32(result.token_ids)) == {NO_TOKEN}
    assert torch.equal(bench.pool, before)

    # A sequence that was not in the plan goes on.
    bench.book.work(2)
    after = bench.engine.compute(bench.book.plan())
    expected = reference.greedy([7] * 5, 2)
    assert [read_u32(first.token_ids)[2], *read_u32(after.token_ids)] == expected


def test_a_row_that_was_released_computes_no_more(bench: Bench) -> None:
    """Its last sequence had tokens and pages enough for the work."""
    for row in (0, 1, 2):
        bench.book.admit(row, [7] * 5)
        bench.book.work(row)
    bench.engine.compute(bench.book.plan())
    bench.book.release(1)
    for row in (0, 2):
        bench.book.work(row)
    plan = bench.book.plan()
    plan.work.rows = u32([0, 1])
    (failure,) = bench.engine.compute(plan).failed
    assert "nobody holds: [1]" in failure.message


def test_rows_that_a_refused_plan_releases_are_free(bench: Bench, reference: Reference) -> None:
    """The router takes them to be, whatever became of the plan."""
    for row in (0, 1):
        bench.book.admit(row, [7] * 3)
        bench.book.work(row)
    assert not bench.engine.compute(bench.book.plan()).failed
    bench.book.release(1)
    bench.book.work(0)
    plan = bench.book.plan()
    _torn_column(plan)
    assert bench.engine.compute(plan).whole_step
    bench.book.admit(1, [9, 9])
    bench.book.work(1)
    result = bench.engine.compute(bench.book.plan())
    assert not result.failed
    assert read_u32(result.token_ids) == reference.greedy([9, 9], 1)


def test_an_error_in_the_model_fails_the_step_and_not_the_stream(
    bench: Bench, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bench.parts.model
    bench.book.admit(0, [1, 2, 3])
    bench.book.admit(1, [4, 5, 6])
    bench.book.admit(2, [7, 8, 9])
    bench.book.work(2)
    answers = Answers()
    bench.book.plan_and(bench.engine, answers)
    for row in (0, 1):
        bench.book.work(row)
    with monkeypatch.context() as broken:
        broken.setattr(model, "hidden", _raise(RuntimeError("token 5 of 'secret' is bad")))
        result = bench.engine.compute(bench.book.plan())
    assert (result.whole_step, result.out_of_memory) == (True, False)
    assert {failure.sequence for failure in result.failed} == {100, 101}
    assert all("secret" not in failure.message for failure in result.failed)
    assert read_u32(result.token_ids) == [NO_TOKEN, NO_TOKEN]

    # The plan after it was in flight: its rows have holes in their K and V, so they stay failed.
    for row in (0, 1, 2):
        bench.book.work(row)
    result = bench.engine.compute(bench.book.plan())
    assert not result.whole_step
    assert {failure.sequence for failure in result.failed} == {100, 101}
    assert read_u32(result.token_ids) == [NO_TOKEN, NO_TOKEN, reference.greedy([7, 8, 9], 2)[1]]


def test_out_of_memory_is_said_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as an accelerator says it, once by asking a CPU for more than any has."""
    for fault in (_raise(torch.OutOfMemoryError("tried to allocate 1 GiB")), lambda *_: torch.empty(1 << 60)):
        bench.book.admit(0, [1])
        bench.book.work(0)
        monkeypatch.setattr(bench.parts.model, "hidden", fault)
        result = bench.engine.compute(bench.book.plan())
        assert "out of memory" in result.failed[0].message
        assert (result.whole_step, result.out_of_memory) == (True, True)
        bench.book.release(0)


def test_scores_that_are_not_numbers_fail_their_sequence_only(
    bench: Bench, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = bench.parts.model.logits

    def poisoned(hidden: torch.Tensor) -> torch.Tensor:
        scores = logits(hidden)
        assert scores is not None
        scores = scores.clone()
        scores[0] = float("nan")
        return scores

    monkeypatch.setattr(bench.parts.model, "logits", poisoned)
    for sampling in (greedy(), greedy(do_sample=True, seed=3, top_k=5)):
        bench.book.admit(0, [1, 2], sampling=sampling)
        bench.book.admit(1, [3, 4])
        for row in (0, 1):
            bench.book.work(row)
        result = bench.engine.compute(bench.book.plan())
        assert [failure.sequence for failure in result.failed] == [100]
        assert read_u32(result.token_ids) == [NO_TOKEN, reference.greedy([3, 4], 1)[0]]
        # Whatever was stored in its row, the step that is already in flight must survive it.
        for row in (0, 1):
            bench.book.work(row)
        result = bench.engine.compute(bench.book.plan())
        assert read_u32(result.token_ids) == [NO_TOKEN, reference.greedy([3, 4], 2)[1]]
        for row in (0, 1):
            bench.book.release(row)


def test_a_new_stream_starts_from_empty_rows(bench: Bench, reference: Reference) -> None:
    bench.book.admit(0, [1, 2, 3])
    bench.book.work(0)
    bench.engine.compute(bench.book.plan())
    bench.engine.reset()
    bench.book.admit(0, [9, 9])
    bench.book.work(0)
    result = bench.engine.compute(bench.book.plan())
    assert not result.failed
    assert read_u32(result.token_ids) == reference.greedy([9, 9], 1)
    assert result.progress == 2


def test_with_several_ranks_a_failed_step_ends_the_process(bench: Bench, parts: EngineParts) -> None:
    """The others may wait in a collective for this one: the caller is told, nothing is answered."""
    pair = EngineParts(model=parts.model, group=Group(rank=0, size=2), device=parts.device, watermark=parts.watermark)
    engine = Engine(pair, bench.engine.shape)
    bench.book.admit(0, [1])
    bench.book.work(0)
    plan = bench.book.plan()
    plan.work.counts = u32([0])
    with pytest.raises(RankLostError):
        engine.compute(plan)


@pytest.mark.parametrize(
    "error",
    [
        RankGoneError("rank 1 has ended"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_without_the_others_or_its_device_a_rank_cannot_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench.book.admit(0, [1])
    bench.book.work(0)
    monkeypatch.setattr(bench.parts.model, "hidden", _raise(error))
    with pytest.raises(RankLostError, match=str(error)):
        bench.engine.compute(bench.book.plan())


def test_a_device_that_is_full_is_not_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.book.admit(0, [1])
    bench.book.work(0)
    monkeypatch.setattr(bench.parts.model, "hidden", _raise(torch.AcceleratorError("CUDA error: out of memory")))
    assert bench.engine.compute(bench.book.plan()).out_of_memory


@dataclass(frozen=True, kw_only=True)
class Beside(Group):
    """With a rank 1 whose steps end like this; `told` is what it hears of this rank's."""

    other: Outcome
    told: list[Outcome] = field(default_factory=list)

    def end_step(self, outcome: Outcome) -> tuple[Outcome, int]:
        self.told.append(outcome)
        return (self.other, 1) if self.other > outcome else (outcome, 0)


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("other", [Outcome.FAILED, Outcome.SHORT])
def test_a_step_that_failed_on_another_rank_has_failed_here_and_its_reason_is_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, other: Outcome, leaves: bool
) -> None:
    """Whether this rank noticed in an exchange, and left, or had got to the end."""
    group = Beside(other=other)
    engine = Engine(EngineParts(**{**vars(bench.parts), "group": group}), bench.engine.shape)
    bench.book.admit(0, [1, 2])
    bench.book.work(0)
    with monkeypatch.context() as broken:
        if leaves:
            broken.setattr(bench.parts.model, "hidden", _raise(ConnectionAbortedError("rank 1 has failed")))
        result = engine.compute(bench.book.plan())
    assert group.told == [Outcome.LEFT if leaves else Outcome.DONE]
    is_short = other is Outcome.SHORT
    assert (result.whole_step, result.out_of_memory) == (True, is_short)
    assert [failure.sequence for failure in result.failed] == [100]
    message = result.failed[0].message
    assert message == OUT_OF_MEMORY if is_short else "rank 1" in message
    assert read_u32(result.token_ids) == [NO_TOKEN]


def test_a_trial_that_would_measure_nothing_is_an_error(bench: Bench) -> None:
    """Its own sequences have failed, or the step has on another rank, behind the last exchange."""
    bench.book.admit(0, [1, VOCAB])
    bench.book.work(0)
    plan = bench.book.plan()
    with pytest.raises(PlanError, match="vocabulary"):
        bench.engine.trial(plan)
    beside = EngineParts(**{**vars(bench.parts), "group": Beside(other=Outcome.SHORT)})
    plan.admitted[0].token_ids = u32([1, 2])
    with pytest.raises(RuntimeError, match="failed on rank 1"):
        Engine(beside, bench.engine.shape).trial(plan)


def _raise(error: Exception) -> Callable[..., torch.Tensor]:
    def raises(*_: object) -> torch.Tensor:
        raise error

    return raises
