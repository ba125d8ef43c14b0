"""Rows read back from a packed weight: exactly those of the table, whatever the shape, the ids and the scale."""

from __future__ import annotations

import random

import pytest
import torch
from millrace_kernels import Machine
from millrace_worker.layers.embedding import PackedEmbedding, TableSlice
from millrace_worker.layers.linear import Epilogue, NativeLinear
from millrace_worker.workspace import FreshRows


def packed(machine: Machine, table: torch.Tensor) -> NativeLinear:
    return NativeLinear(machine, table, None, FreshRows(len(table), torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 900])
def test_rows_are_those_of_the_table(machine: Machine, count: int, dtype: torch.dtype) -> None:
    rows, width = random.randint(1, 300), 2 * random.randint(1, 40)
    table = torch.randn(rows, width).to(dtype)
    embedding = PackedEmbedding(packed(machine, table), TableSlice(), dtype)
    ids = torch.randint(rows, (count,))
    table_rows = table[ids].float()
    assert torch.equal(embedding(ids), table_rows)
    scaled = PackedEmbedding(packed(machine, table), TableSlice(scale=width**0.5), dtype)
    assert torch.equal(scaled(ids), table_rows * torch.tensor(width**0.5, dtype=dtype).float())
    every_second = torch.randint(rows, (2 * count,))[::2]
    assert torch.equal(embedding(every_second), table[every_second].float())


def test_ids_of_other_ranks_give_zeros(machine: Machine) -> None:
    table = torch.randn(50, 32)
    head = packed(machine, table)
    ids = torch.tensor([49, 50, 75, 99, 100, 2**40, 0, -1])
    found = head.lookup(ids, 50, 1.0)
    assert torch.equal(found[1:4], table[[0, 25, 49]])
    assert torch.equal(found[[0, 4, 5, 6, 7]], torch.zeros(5, 32))


def test_wrong_ids_and_weights_with_a_gate_are_refused(machine: Machine) -> None:
    head = packed(machine, torch.randn(8, 16))
    for ids in (torch.zeros(3, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"\[T\] int64"):
            head.lookup(ids, 0, 1.0)
    gated = NativeLinear(
        machine, torch.randn(8, 16), None, FreshRows(4, torch.float32), Epilogue(activation="silu", gated=True)
    )
    with pytest.raises(ValueError, match="with a gate"):
        gated.lookup(torch.zeros(1, dtype=torch.int64), 0, 1.0)
