"""An engine over a model whose sequences hold no pages: what it knows of a sequence lies in its row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from millrace_worker.config import WorkerConfig
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.memory import DoesNotFitError
from millrace_worker.proto import worker_pb2
from millrace_worker.rank import Identity, Rank
from millrace_worker.rows import RowsShape
from millrace_worker.sampling import Watermark
from millrace_worker.step import Batch
from torch import Tensor

from .plans import Answers, PlanBook

VOCAB, WIDTH = 50, 16


@dataclass
class Recurrence:
    """h = tanh(h A + embedding of the token), in the row. Nothing of it is the worker's own."""

    seed: int = 0
    implementation: str = "test"
    vocab_size: int = VOCAB
    max_positions: int = 1000
    page_size: int = 0
    encodes_prompts: bool = False
    missing: dict[str, str] = field(default_factory=lambda: {"prefix_caching": "the state lies in rows"})
    allocated: tuple[int, int] = (0, 0)
    forgotten: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)
        self.embedding = torch.randn(VOCAB, WIDTH, generator=rng)
        self.carry = torch.randn(WIDTH, WIDTH, generator=rng) / 2

    def plan(self, batch: Batch) -> Batch:
        return batch

    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: Batch) -> Tensor:
        hidden, at = torch.empty(len(token_ids_T), WIDTH), 0
        for row, start, count in zip(step.rows, step.starts, step.counts, strict=True):
            if start == 0:
                self.states[row] = 0
            for _ in range(count):
                self.states[row] = torch.tanh(self.states[row] @ self.carry + self.embedding[token_ids_T[at]])
                hidden[at] = self.states[row]
                at += 1
        return hidden

    def logits(self, hidden_RD: Tensor) -> Tensor:
        return hidden_RD @ self.embedding.T

    def allocate_rows(self, max_rows: int, max_sequence_tokens: int) -> None:
        self.allocated = (max_rows, max_sequence_tokens)
        self.states = torch.full((max_rows, WIDTH), float("nan"))

    def forget_rows(self, rows: Iterable[int]) -> None:
        self.forgotten += rows

    def row_bytes(self, max_sequence_tokens: int) -> int:
        return WIDTH * 4

    def implementations(self) -> dict[str, str]:
        return {}

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """By a loop of its own."""
        tokens, state = list(prompt), torch.zeros(WIDTH)
        for token in prompt:
            state = torch.tanh(state @ self.carry + self.embedding[token])
        for _ in range(count):
            tokens.append(int((state @ self.embedding.T).argmax()))
            state = torch.tanh(state @ self.carry + self.embedding[tokens[-1]])
        return tokens[len(prompt) :]


@pytest.fixture
def model() -> Recurrence:
    return Recurrence(seed=int(np.random.default_rng().integers(1 << 30)))


@pytest.fixture
def parts(model: Recurrence) -> EngineParts:
    return EngineParts(model=model, group=Group(), device=torch.device("cpu"), watermark=Watermark())


@pytest.fixture
def engine(parts: EngineParts, model: Recurrence) -> Engine:
    model.allocate_rows(4, 200)
    shape = RowsShape(
        max_rows=4, max_sequence_tokens=200, page_size=0, num_pages=0, vocab_size=VOCAB, max_step_tokens=64
    )
    return Engine(parts, shape)


def test_rows_are_used_again_and_again(engine: Engine, model: Recurrence) -> None:
    """In random chunks, beside others, in rows that hold what their last sequences left."""
    rng = np.random.default_rng()
    book, answers = PlanBook(0, 0), Answers()
    waiting = [rng.integers(0, VOCAB, int(length)).tolist() for length in rng.integers(1, 50, 12)]
    running: dict[int, tuple[list[int], int]] = {}
    while waiting or running:
        for row in range(4):
            if row not in running and waiting:
                running[row] = (waiting.pop(), int(rng.integers(1, 10)))
                answers.token_ids[row] = []
                book.admit(row, running[row][0])
        for row in running:
            if rng.random() < 0.8:
                book.work(row, int(rng.integers(1, 16)))
        book.plan_and(engine, answers)
        for row, (prompt, wanted) in list(running.items()):
            if len(answers.token_ids[row]) >= wanted:
                assert answers.token_ids[row][:wanted] == model.greedy(prompt, wanted)
                book.release(row)
                del running[row]
    assert answers.failed == {}


def test_a_row_is_forgotten_when_its_sequence_has_ended(engine: Engine, model: Recurrence) -> None:
    book, answers = PlanBook(0, 0), Answers()
    for row in (2, 0):
        book.admit(row, [5, 6, 7])
        book.work(row, 3)
    book.plan_and(engine, answers)
    assert model.forgotten == []
    book.release(2)
    book.work(0)
    book.plan_and(engine, answers)
    assert model.forgotten == [2]
    engine.reset()
    assert model.forgotten == [2, 0, 1, 2, 3]


def test_plans_need_no_result(engine: Engine, model: Recurrence) -> None:
    book, answers = PlanBook(0, 0), Answers()
    book.admit(2, [5, 6, 7])
    plans = []
    for _ in range(8):
        book.work(2)
        plans.append(book.plan())
    for plan in plans:
        answers.read(plan, engine.compute(plan))
    assert answers.token_ids == {2: model.greedy([5, 6, 7], 8)}


@pytest.mark.parametrize("wrong", ["again", "ahead", "pages", "copies"])
def test_a_plan_that_a_state_cannot_follow_is_refused(engine: Engine, wrong: str) -> None:
    book, answers = PlanBook(0, 0), Answers()
    book.admit(1, list(range(20)))
    book.work(1, 8)
    book.plan_and(engine, answers)
    book.work(1, 4)
    plan = book.plan()
    match wrong:
        case "again":
            plan.work.starts = np.array([4], dtype="<u4").tobytes()
        case "ahead":
            plan.work.starts = np.array([9], dtype="<u4").tobytes()
        case "pages":
            plan.grown.rows, plan.grown.indices, plan.grown.pages = b"\1\0\0\0", bytes(4), bytes(4)
        case _:
            plan.copies.sources = plan.copies.targets = bytes(4)
    assert "the step was refused" in engine.compute(plan).failed[0].message


def test_a_state_that_begins_anew_is_no_mistake(engine: Engine, model: Recurrence) -> None:
    """A sequence that is computed from its first token in the row that it holds."""
    book, answers = PlanBook(0, 0), Answers()
    book.admit(1, list(range(20)))
    book.work(1, 8)
    book.plan_and(engine, answers)
    book.held[1].computed = 0
    book.work(1)
    book.plan_and(engine, answers)
    assert answers.token_ids == {1: model.greedy(list(range(20)), 1)}


def _rank(parts: EngineParts, path: Path, **options: object) -> Rank:
    config = WorkerConfig(model_path=path, uds_path="unused", **options)  # pyright: ignore[reportArgumentType]
    identity = Identity(architecture="Recurrence", dtype=torch.float32, device_name="test", weight_bytes=10**6)
    return Rank(config, parts, identity)


def test_prepare_answers_how_many_rows_fit(parts: EngineParts, model: Recurrence, tmp_path: Path) -> None:
    request = worker_pb2.PrepareRequest(max_rows=8, max_step_tokens=64, max_sequence_tokens=100)
    rank = _rank(parts, tmp_path)
    described = rank.describe()
    assert described.page_size == 0
    assert "prefix_caching" not in described.capabilities
    assert described.missing["prefix_caching"] == "the state lies in rows"
    prepared = rank.prepare(request)
    assert (prepared.max_rows, prepared.num_pages, prepared.page_bytes) == (8, 0, 0)
    assert (prepared.max_sequence_tokens, model.allocated) == (100, (8, 100))

    rank = _rank(parts, tmp_path, kv_cache_memory=3 * WIDTH * 4 + 1)
    assert rank.prepare(request).max_rows == 3
    assert model.allocated == (3, 100)
    book, answers = PlanBook(0, 0), Answers()
    for row in range(3):
        book.admit(row, [row, 9])
        book.work(row)
    book.plan_and(rank.engine, answers)
    assert answers.token_ids == {row: model.greedy([row, 9], 1) for row in range(3)}
    with pytest.raises(DoesNotFitError, match="one sequence"):
        _rank(parts, tmp_path, kv_cache_memory=WIDTH).prepare(request)


def test_a_length_left_open_is_the_models(parts: EngineParts, tmp_path: Path) -> None:
    request = worker_pb2.PrepareRequest(max_rows=2, max_step_tokens=64)
    assert _rank(parts, tmp_path).prepare(request).max_sequence_tokens == 1000
