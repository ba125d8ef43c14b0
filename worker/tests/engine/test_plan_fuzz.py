"""Bytes that are nearly a plan: the worker computes them or fails the sequences of the step, and goes on either way.

What comes is made of a seed, so that it comes again. `CASES` in the environment says how much of it.
"""

from __future__ import annotations

import os
import random

from google.protobuf.message import DecodeError
from millrace_worker.proto import worker_pb2

from .conftest import Bench, Reference
from .plans import PlanBook, greedy

CASES = int(os.environ.get("CASES", "200"))
STEPS_BEFORE_A_RESET = 20


def corpus(page_size: int) -> list[bytes]:
    """Plans of a life: admissions, chunks, growth, copies, releases."""
    book = PlanBook(page_size, 40)
    plans = []
    for row in range(4):
        book.admit(row, [row + 1] * (3 + 7 * row), sampling=greedy(do_sample=row % 2 == 0, seed=row, top_n_tokens=row))
        book.work(row, 5)
    plans.append(book.plan().SerializeToString())
    for _ in range(12):
        for row in list(book.held):
            book.work(row, 6)
        plans.append(book.plan().SerializeToString())
    book.copy(book.held[0].pages[0], book.take_page())
    book.release(3)
    book.work(1)
    plans.append(book.plan().SerializeToString())
    return plans


def mutated(dice: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randrange(4)):
        start = dice.randrange(len(changed) + 1)
        end = start + dice.randrange(9)
        kind = dice.randrange(5)
        if kind == 0:
            del changed[start:end]
        elif kind == 1:
            changed[start:start] = changed[start:end]
        elif kind == 2:
            taken = dice.randrange(len(other))
            changed[start:end] = other[taken : taken + dice.randrange(9)]
        elif changed:
            changed[start % len(changed)] = dice.choice((0, 1, 2, 127, 128, 255, dice.randrange(256)))
    return bytes(changed)


def as_plan(data: bytes) -> worker_pb2.StepPlan | None:
    try:
        return worker_pb2.StepPlan.FromString(data)
    except DecodeError:
        return None


def test_whatever_a_plan_is_it_is_computed_or_refused(bench: Bench, reference: Reference) -> None:
    dice = random.Random(8)
    plans = corpus(bench.parts.model.page_size)
    read = failed = 0
    for case in range(CASES):
        if case % STEPS_BEFORE_A_RESET == 0:
            bench.engine.reset()
        plan = as_plan(mutated(dice, plans[case % len(plans)], dice.choice(plans)))
        if plan is None:
            continue
        read += 1
        result = bench.engine.compute(plan)
        failed += bool(result.failed)
        assert result.step == plan.step
        assert all(failure.message for failure in result.failed)
    assert read * 4 > CASES
    assert failed * 20 > read
    check_that_it_still_computes(bench, reference)


def check_that_it_still_computes(bench: Bench, reference: Reference) -> None:
    """Whatever came before: a new stream begins with empty rows, and the numbers are right."""
    bench.engine.reset()
    prompt, ids = [5, 6, 7, 8], []
    bench.book.admit(0, prompt)
    for _ in range(6):
        bench.book.work(0)
        result = bench.engine.compute(bench.book.plan())
        assert not result.failed
        ids.append(int.from_bytes(result.token_ids, "little"))
    assert reference.follows(prompt, ids)
