"""Which columns of an MLP a rank holds, and numbers of ranks that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from millrace_worker.config import WorkerConfig
from millrace_worker.models import preflight
from millrace_worker.models.sharding import Rank, ShardingError

from .checkpoints import Saved


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("total", [8, 97, 96, 176, 704, 4864, 11008, 13696])
def test_every_column_has_one_rank_and_the_parts_are_nearly_equal(total: int, size: int) -> None:
    parts = [Rank(index, size).columns(total, "columns") for index in range(size)]
    assert [column for part in parts for column in part] == list(range(total))
    lengths = {len(part) for part in parts}
    assert max(lengths) - min(lengths) <= (0 if total % size == 0 else 64)
    assert min(lengths) > 0


def test_cuts_lie_between_blocks_where_they_can() -> None:
    assert [Rank(index, 3).columns(11008, "columns").start for index in range(3)] == [0, 57 * 64, 114 * 64]
    assert [len(Rank(index, 4).columns(97, "columns")) for index in range(4)] == [24, 24, 24, 25]


def test_fewer_columns_than_ranks_are_refused_with_the_numbers() -> None:
    with pytest.raises(ShardingError, match="3 columns of the MLP are too few for 4 shards; choose --num-shard"):
        Rank(0, 4).columns(3, "columns of the MLP")


def test_heads_that_do_not_divide_are_told_before_anything_is_loaded(saved: Callable[[str], Saved]) -> None:
    def ask(**over: Any) -> WorkerConfig:
        return WorkerConfig(model_path=saved("llama").folder, uds_path="unused", **over)

    preflight.check(ask(rank=1, world_size=4))
    with pytest.raises(ShardingError, match="4 attention heads do not divide over 3 shards"):
        preflight.check(ask(rank=0, world_size=3))
    preflight.check(ask(rank=0, world_size=3, model_impl="transformers"))
