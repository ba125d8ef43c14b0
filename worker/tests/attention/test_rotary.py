"""Rows of a rotary table are made when a step first needs them, wherever it begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from millrace_worker.attention.rotary import BLOCK, RotaryTable, SwitchedRotaryTable, rotate_, split
from millrace_worker.step import Batch

CPU = torch.device("cpu")
FREQUENCIES = torch.rand(6)


def batch(*work: tuple[int, int], lengths: list[int] | None = None) -> Batch:
    """One row for each (start, count)."""
    table = np.zeros((len(work), 1), dtype=np.int32)
    return Batch(
        rows=np.arange(len(work)),
        starts=np.array([start for start, _ in work]),
        counts=np.array([count for _, count in work]),
        page_table=torch.from_numpy(table),
        page_table_host=table,
        lengths=None if lengths is None else np.array(lengths),
    )


def table(max_positions: int, *, speed: float = 1.0) -> RotaryTable:
    def angles(positions: torch.Tensor) -> torch.Tensor:
        return speed * positions[:, None] * FREQUENCIES

    return RotaryTable(angles, 12, max_positions, dtype=torch.float32, device=CPU)


def cosines(positions: torch.Tensor, *, speed: float = 1.0) -> torch.Tensor:
    return (speed * positions[:, None] * FREQUENCIES).cos().repeat(1, 2)[:, None]


def test_a_rotation_equals_the_complex_product() -> None:
    """Pairs (i, i + R / 2) as complex numbers, turned by exp(i * angle); the other dimensions stay."""
    positions = torch.tensor([0, 3, 17, 99])
    x = torch.randn(4, 3, 16)
    angles = positions[:, None] * FREQUENCIES
    turned = torch.complex(x[..., :6], x[..., 6:12]) * torch.polar(torch.ones(4, 6), angles).unsqueeze(1)
    expected = torch.cat((turned.real, turned.imag, x[..., 12:]), dim=-1)
    rotate_(x, split(table(100).plan(batch((0, 100))).rows(positions)))
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_the_same_whatever_came_before(seed: int) -> None:
    """Chunks that begin anywhere, in any order, also across several blocks; as one table of all positions has them."""
    rng = np.random.default_rng(seed)
    last = 9 * BLOCK - 5
    grown = table(last)
    for _ in range(6):
        starts = rng.integers(0, last, 3)
        counts = np.minimum(rng.choice([1, 30, 3 * BLOCK], 3), last - starts)
        grown.plan(batch(*zip(starts.tolist(), counts.tolist(), strict=True)))
        positions = torch.from_numpy(np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)]))
        assert torch.equal(split(grown.rows(positions)).cos, cosines(positions))


def test_a_long_context_costs_nothing_until_it_is_used() -> None:
    """A table of all positions would have 4 GiB."""
    untouched = table(40_000_000)
    assert untouched._rows.numel() == 0
    at = torch.tensor([2_000_000])
    assert torch.equal(split(untouched.plan(batch((2_000_000, 1))).rows(at)).cos, cosines(at))
    assert untouched._made.sum() == 1


def test_longer_sequences_turn_by_the_second_table_at_every_position() -> None:
    switched = SwitchedRotaryTable(table(20), table(100, speed=0.5), switch=20)
    work, positions = ((19, 1), (3, 2), (0, 4)), torch.tensor([19, 3, 4, 0, 1, 2, 3])
    for lengths, is_long in (
        ([20, 5, 4], [False] * 7),
        ([21, 50, 100], [True] * 7),
        ([20, 21, 20], [False, True, True, False, False, False, False]),
    ):
        found = split(switched.plan(batch(*work, lengths=lengths)).rows(positions))
        slow, fast = cosines(positions, speed=0.5), cosines(positions)
        expected = torch.where(torch.tensor(is_long)[:, None, None], slow, fast)
        assert torch.equal(found.cos, expected)
        assert found.cos.stride(0) == found.sin.stride(0) == 24  # side by side, as kernels read them


def test_without_known_lengths_a_sequence_ends_with_its_step() -> None:
    switched = SwitchedRotaryTable(table(20), table(100, speed=0.5), switch=20)
    at = torch.tensor([19, 20])
    assert torch.equal(split(switched.plan(batch((19, 2))).rows(at)).cos, cosines(at, speed=0.5))
    assert torch.equal(split(switched.plan(batch((19, 1))).rows(at[:1])).cos, cosines(at[:1]))
