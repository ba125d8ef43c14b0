"""Attention in chunks of the text: every chunk is a sequence of its own, over the same pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.attention.torch_backend import TorchBackend
from millrace_worker.step import Batch


def test_entries_are_cut_where_chunks_end() -> None:
    table = np.arange(40, dtype=np.int32).reshape(2, 20)
    batch = Batch(
        rows=np.array([1, 0, 1]),
        starts=np.array([30, 64, 0]),
        counts=np.array([40, 1, 5]),
        page_table=torch.from_numpy(table),
        page_table_host=table,
    )
    cut = batch.in_chunks(32, 16)
    assert cut.starts.tolist() == [30, 0, 0, 0, 0]
    assert cut.counts.tolist() == [2, 32, 6, 1, 5]
    assert cut.page_table_host[:, 0].tolist() == [20, 22, 24, 4, 20]
    assert cut.page_table_host[1].tolist() == [22, 23]
    assert cut.rows.tolist() == [0, 1, 2, 3, 4]


def test_chunks_that_cut_pages_are_refused() -> None:
    heads = Heads(layer=0, num_heads=1, num_kv_heads=1, head_dim=8, scale=1.0, rule=ScoreRule(chunk=24))
    with pytest.raises(ValueError, match="chunks of 24 positions: multiples of 16"):
        TorchBackend([heads], torch.float32, torch.device("cpu"))
