"""Workspaces: one memory for every step, as large as the largest; what outlives a step is never in one."""

from __future__ import annotations

import torch
from millrace_worker.workspace import FreshRows, Role, Workspace, Workspaces


def test_rows_lie_in_one_memory_that_grows_and_stays() -> None:
    workspace = Workspace(12, torch.bfloat16)
    large = workspace.rows(100)
    address = workspace.address
    assert (large.shape, large.dtype, large.data_ptr()) == ((100, 12), torch.bfloat16, address)
    for number in (1, 100, 37):
        rows = workspace.rows(number)
        assert rows.shape == (number, 12)
        assert rows.is_contiguous()
        assert rows.data_ptr() == workspace.address == address
    grown = workspace.rows(101)
    assert grown.shape == (101, 12)
    assert grown.data_ptr() == workspace.address
    assert workspace.rows(100).data_ptr() == workspace.address


def test_the_same_number_of_rows_is_the_same_tensor() -> None:
    workspace = Workspace(8, torch.float32)
    assert workspace.rows(5) is workspace.rows(5)


def test_operators_share_by_role_and_shape() -> None:
    workspaces = Workspaces()
    taken = workspaces.take(Role.UP, 8, torch.float32)
    assert workspaces.take(Role.UP, 8, torch.float32) is taken
    others = [(Role.QKV, 8, torch.float32), (Role.UP, 9, torch.float32), (Role.UP, 8, torch.bfloat16)]
    assert all(workspaces.take(*other) is not taken for other in others)


def test_logits_are_the_callers_to_keep() -> None:
    logits = Workspaces().take(Role.LOGITS, 4, torch.float32)
    assert isinstance(logits, FreshRows)
    first, address = logits.rows(2), logits.address
    second = logits.rows(2)
    assert first.data_ptr() == address
    assert second.data_ptr() == logits.address != address
