"""Grouping, slots and masks against brute force over random batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from millrace_worker.attention import plan as planning
from millrace_worker.attention.bias import decode_bias, tail_bias
from millrace_worker.attention.interface import ScoreRule
from millrace_worker.step import Batch

PAGE = 16


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    size = draw(st.integers(1, 12))
    starts = draw(st.lists(st.integers(0, 600), min_size=size, max_size=size))
    counts = draw(st.lists(st.one_of(st.just(1), st.integers(1, 50)), min_size=size, max_size=size))
    rows = draw(st.permutations(range(size + 3)))[:size]
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    table = generator.permutation((size + 3) * 48).reshape(size + 3, 48).astype(np.int32)
    return Batch(
        rows=np.array(rows),
        starts=np.array(starts),
        counts=np.array(counts),
        page_table=torch.from_numpy(table),
        page_table_host=table,
    )


rules = st.builds(ScoreRule, st.sampled_from([None, 1, 9, 16, 100]), st.none(), st.sampled_from([None, (0.5, 0.25)]))
limit_pairs = st.builds(planning.Limits, st.integers(1, 200), st.integers(0, 100))


@given(batches())
@settings(max_examples=100, deadline=None)
def test_every_token_has_the_slot_of_its_position(batch: Batch) -> None:
    expected_positions, expected_slots = [], []
    for row, start, count in zip(batch.rows, batch.starts, batch.counts, strict=True):
        for position in range(start, start + count):
            expected_positions.append(position)
            expected_slots.append(int(batch.page_table_host[row, position // PAGE]) * PAGE + position % PAGE)
    positions = planning.token_positions(batch)
    assert positions.tolist() == expected_positions
    assert planning.token_slots(batch, positions, PAGE).tolist() == expected_slots


@given(batches())
@settings(max_examples=100, deadline=None)
def test_pages_are_cleared_exactly_when_they_are_begun_and_not_filled(batch: Batch) -> None:
    expected = set()
    for row, start, count in zip(batch.rows, batch.starts, batch.counts, strict=True):
        for index in range(48):
            written = set(range(start, start + count)) & set(range(index * PAGE, (index + 1) * PAGE))
            if index * PAGE in written and len(written) < PAGE:
                expected.add(int(batch.page_table_host[row, index]))
    assert set(planning.begun_pages(batch, PAGE).tolist()) == expected


@given(batches(), rules, limit_pairs)
@settings(max_examples=200, deadline=None)
def test_each_decode_row_sees_its_own_keys_and_no_others(
    batch: Batch, rule: ScoreRule, limits: planning.Limits
) -> None:
    offsets = np.cumsum(batch.counts) - batch.counts
    entry_of_token = {int(offsets[entry]): entry for entry in range(len(batch.rows)) if batch.counts[entry] == 1}
    seen = []
    for group in planning.decode_groups(batch, rule, PAGE, limits):
        tokens = np.arange(int(batch.counts.sum()))[group.tokens]
        seen += tokens.tolist()
        assert len(tokens) == 1 or group.pages.size <= limits.group_pages
        for index, token in enumerate(tokens):
            entry = entry_of_token[int(token)]
            own = batch.page_table_host[batch.rows[entry]]
            last = int(batch.starts[entry])
            assert set(group.pages[index].tolist()) <= set(own[: last // PAGE + 1].tolist())
            expected = {
                int(own[position // PAGE]) * PAGE + position % PAGE: last - position
                for position in range(max(0, last + 1 - (rule.window or 10**9)), last + 1)
            }
            slots = (group.pages[index][:, None] * PAGE + np.arange(PAGE)).reshape(-1)[: group.num_keys]
            begins, ends = (torch.from_numpy(each[index : index + 1]) for each in (group.begins, group.ends))
            bias = decode_bias(begins, ends, group.num_keys, rule)[0, :, 0].numpy()
            assert np.isfinite(bias).all() or not group.sees_all
            kept = np.flatnonzero(np.isfinite(bias[0]))
            assert slots[kept].tolist() == list(expected)
            slopes = np.array(rule.alibi or (0.0,))[:, None]
            np.testing.assert_allclose(bias[:, kept], -slopes * np.array(list(expected.values())), rtol=1e-6)
    assert sorted(seen) == sorted(entry_of_token)


@given(st.integers(1, 20), st.integers(0, 60), rules)
@settings(max_examples=100, deadline=None)
def test_the_tail_bias_serves_every_shorter_block(num_queries: int, before: int, rule: ScoreRule) -> None:
    num_keys = num_queries + before
    whole = tail_bias(num_queries, num_keys, rule, torch.device("cpu"))
    for queries in range(1, num_queries + 1):
        part = whole[:, num_queries - queries :, before // 2 :]
        assert torch.equal(part, tail_bias(queries, num_keys - before // 2, rule, torch.device("cpu")))
    last = whole[0, -1]
    visible = min(num_keys, rule.window or num_keys)
    assert last[num_keys - visible :].isfinite().all()
    assert not last[: num_keys - visible].isfinite().any()
    assert not whole[0, 0, before + 1 :].isfinite().any()


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=64), limit_pairs)
@settings(max_examples=200, deadline=None)
def test_groups_hold_each_row_once_and_stay_small(lengths: list[int], limits: planning.Limits) -> None:
    num_pages = np.array(lengths)
    groups = list(planning.group_by_length(num_pages, limits))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * int(num_pages[group].max()) <= limits.group_pages
        assert (np.diff(group) > 0).all()


def test_one_long_row_does_not_make_the_short_ones_pay() -> None:
    num_pages = np.array([10, 11, 10, 2000, 10, 12])
    groups = [group.tolist() for group in planning.group_by_length(num_pages, planning.Limits(10000, 16))]
    assert sorted(groups) == [[0, 1, 2, 4, 5], [3]]


def test_rows_of_like_length_stay_together() -> None:
    num_pages = np.arange(10, 26)
    (group,) = planning.group_by_length(num_pages, planning.Limits(10000, 200))
    assert group.tolist() == list(range(16))


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 5, 1]])
def test_neighbouring_tokens_are_a_slice(counts: list[int]) -> None:
    table = np.arange(12, dtype=np.int32).reshape(3, 4)
    batch = Batch(
        rows=np.arange(3),
        starts=np.array([4, 4, 4]),
        counts=np.array(counts),
        page_table=torch.from_numpy(table),
        page_table_host=table,
    )
    (group,) = planning.decode_groups(batch, ScoreRule(), PAGE, planning.Limits(100, 100))
    if counts[1] == 1:
        assert group.tokens == slice(0, 3)
    else:
        assert np.asarray(group.tokens).tolist() == [0, 6]
