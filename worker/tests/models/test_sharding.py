"""Which columns of an MLP a rank holds, and numbers of ranks that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from millrace_worker.config import WorkerConfig
from millrace_worker.models import preflight
from millrace_worker.models.sharding import Rank, ShardingError
from safetensors.torch import save_file

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


@pytest.mark.parametrize(("total", "unit", "size"), [(11008, 128, 4), (96, 32, 2), (100, 32, 3), (18944, 128, 8)])
def test_groups_are_not_parted(total: int, unit: int, size: int) -> None:
    parts = [Rank(index, size, unit).columns(total, "columns") for index in range(size)]
    assert [column for part in parts for column in part] == list(range(total))
    assert all(part.start % unit == 0 for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= unit + total % unit


def test_too_few_groups_are_shared_as_columns_are() -> None:
    assert [Rank(index, 2, 128).columns(96, "columns") for index in range(2)] == [range(48), range(48, 96)]


def test_fewer_columns_than_ranks_are_refused_with_the_numbers() -> None:
    with pytest.raises(ShardingError, match="3 columns of the MLP are too few for 4 shards; choose --num-shard"):
        Rank(0, 4).columns(3, "columns of the MLP")


def write(folder: Path, architecture: str, **values: Any) -> Path:
    """A configuration beside a file of weights that holds nothing: numbers of ranks are told before they are read."""
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "vocab_size": 99} | values))
    save_file({"none": torch.zeros(1)}, folder / "model.safetensors")
    return folder


T5 = {"d_model": 60, "d_kv": 12, "num_layers": 2, "decoder_start_token_id": 0}
LATENT = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_experts_per_tok": 2}
EXPERTS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_local_experts": 4}


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        (
            "T5ForConditionalGeneration",
            T5 | {"num_heads": 5, "d_ff": 96},
            "5 attention heads do not divide over 2",
        ),
        (
            "T5ForConditionalGeneration",
            T5 | {"num_heads": 6, "d_ff": 1},
            "1 columns of the MLP are too few for 2",
        ),
        ("DeepseekV3ForCausalLM", LATENT | {"num_attention_heads": 3}, "3 attention heads do not divide over 2 shards"),
        ("MixtralForCausalLM", EXPERTS | {"intermediate_size": 1}, "1 columns of each expert are too few for 2"),
    ],
)
def test_what_does_not_divide_is_told_with_its_numbers(
    architecture: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, architecture, **values)
    preflight.check(WorkerConfig(model_path=folder, uds_path="unused"))
    with pytest.raises(ShardingError, match=message):
        preflight.check(WorkerConfig(model_path=folder, uds_path="unused", world_size=2))


def test_heads_that_do_not_divide_are_told_before_anything_is_loaded(saved: Callable[[str], Saved]) -> None:
    def ask(**over: Any) -> WorkerConfig:
        return WorkerConfig(model_path=saved("llama").folder, uds_path="unused", **over)

    preflight.check(ask(rank=1, world_size=4))
    with pytest.raises(ShardingError, match="4 attention heads do not divide over 3 shards"):
        preflight.check(ask(rank=0, world_size=3))
    preflight.check(ask(rank=0, world_size=3, model_impl="transformers"))
