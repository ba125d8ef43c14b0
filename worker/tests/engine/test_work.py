"""From plans to a step's tokens: a layout is kept while plans name the same, and what is built of it is theirs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from millrace_worker.grammar import NoGrammars
from millrace_worker.inputs import InputBuilder
from millrace_worker.proto import worker_pb2
from millrace_worker.rows import Rows, RowsShape
from millrace_worker.sampling import SamplingRows
from millrace_worker.work import PlanError, WorkReader

from .plans import u32

MAX_ROWS, TOKENS = 4, 24
SHAPE = RowsShape(
    max_rows=MAX_ROWS, max_sequence_tokens=TOKENS, page_size=8, num_pages=12, vocab_size=1000, max_step_tokens=96
)


@dataclass(frozen=True)
class Entry:
    row: int
    start: int
    count: int
    is_sampled: bool


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    rows = draw(st.permutations(range(MAX_ROWS)))[: draw(st.integers(1, MAX_ROWS))]
    made = []
    for row in rows:
        start = draw(st.integers(0, TOKENS - 1))
        count = draw(st.just(1) | st.integers(1, TOKENS - start))
        made.append(Entry(row, start, count, draw(st.booleans())))
    return made


def plan_of(work: list[Entry]) -> worker_pb2.StepPlan:
    plan = worker_pb2.StepPlan(step=1)
    plan.work.rows, plan.work.starts = u32([each.row for each in work]), u32([each.start for each in work])
    plan.work.counts = u32([each.count for each in work])
    plan.work.samples = bytes([each.is_sampled for each in work])
    return plan


def made_rows() -> Rows:
    cpu = torch.device("cpu")
    rows = Rows(SHAPE, SamplingRows(MAX_ROWS, cpu), cpu, NoGrammars(""))
    rows.token_ids.copy_(torch.arange(rows.token_ids.numel()).view(rows.token_ids.shape))
    rows.num_prompt_tokens[:] = [3, 9, 24, 1]
    rows.prompt_top_tokens[:] = [0, 1, 2, 3]
    return rows


@given(st.lists(entries(), min_size=1, max_size=4), st.lists(st.booleans(), min_size=MAX_ROWS, max_size=MAX_ROWS))
def test_inputs_are_those_of_the_plan(plans: list[list[Entry]], asks_prompt: list[bool]) -> None:
    rows, reader = made_rows(), WorkReader()
    rows.prompt_logprobs[:] = asks_prompt
    builder = InputBuilder(rows)
    for work in (each for each in plans for _ in range(2)):
        inputs = builder.build(reader.read(plan_of(work)))
        tokens = [(each.row, each.start + n) for each in work for n in range(each.count)]
        assert inputs.positions.tolist() == [position for _, position in tokens]
        assert inputs.token_ids.tolist() == [row * (TOKENS + 1) + position for row, position in tokens]
        sampled = [(each.row, each.start + each.count) for each in work if each.is_sampled]
        assert list(zip(inputs.sampled_rows.tolist(), inputs.sampled_positions.tolist(), strict=True)) == sampled
        stored = [] if inputs.store_index is None else inputs.store_index.tolist()
        assert stored == [row * (TOKENS + 1) + position for row, position in sampled]
        index = range(len(tokens)) if inputs.logits_index is None else inputs.logits_index.tolist()
        assert [tokens[place] for place in index] == [(row, position - 1) for row, position in sampled]
        check_prompt(rows, work, inputs.prompt, tokens)


def check_prompt(rows: Rows, work: list[Entry], prompt, tokens: list[tuple[int, int]]) -> None:
    asked = [
        (entry, each.row, position)
        for entry, each in enumerate(work)
        for position in range(each.start, each.start + each.count)
        if rows.prompt_logprobs[each.row] and position + 1 < rows.num_prompt_tokens[each.row]
    ]
    if prompt is None:
        assert not asked
        return
    assert np.repeat(prompt.entries, prompt.counts).tolist() == [entry for entry, _, _ in asked]
    assert [tokens[place] for place in prompt.hidden_index.tolist()] == [place[1:] for place in asked]
    assert prompt.targets.tolist() == [row * (TOKENS + 1) + position + 1 for _, row, position in asked]
    assert prompt.num_top.tolist() == [rows.prompt_top_tokens[work[entry].row] for entry in prompt.entries]


def test_a_layout_is_kept_while_only_starts_change() -> None:
    reader = WorkReader()
    first = reader.read(plan_of([Entry(0, 3, 1, True), Entry(2, 7, 1, True)]))
    second = reader.read(plan_of([Entry(0, 4, 1, True), Entry(2, 8, 1, True)]))
    assert second.layout is first.layout
    assert second.starts.tolist() == [4, 8]
    for other in ([Entry(0, 5, 1, True)], [Entry(0, 5, 2, True)], [Entry(0, 5, 2, False)], [Entry(1, 5, 2, False)]):
        last = reader.read(plan_of(other))
        assert last.layout is not second.layout
        assert (last.layout.rows.tolist(), last.layout.counts.tolist()) == ([other[0].row], [other[0].count])
        assert last.layout.samples.tolist() == [other[0].is_sampled]


def test_a_plan_that_is_refused_leaves_no_layout_behind() -> None:
    reader = WorkReader()
    plan = plan_of([Entry(0, 3, 1, True), Entry(2, 7, 1, True)])
    plan.work.counts = u32([1])
    for _ in range(2):
        with pytest.raises(PlanError, match="lengths"):
            reader.read(plan)
    good = reader.read(plan_of([Entry(0, 3, 1, True)]))
    plan = plan_of([Entry(0, 3, 1, True)])
    plan.work.starts = u32([3, 4])
    with pytest.raises(PlanError, match="lengths"):
        reader.read(plan)
    assert reader.read(plan_of([Entry(0, 4, 1, True)])).layout is good.layout
