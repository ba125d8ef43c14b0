"""Tensor parallelism: processes over gloo give the logits of transformers; what does not divide is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from millrace_worker.distributed import Group
from millrace_worker.models.checkpoint import Checkpoint
from millrace_worker.models.load import load_model
from millrace_worker.models.names import Names
from millrace_worker.models.sharding import Rank, ShardingError, local_attention, qkv_pieces
from millrace_worker.models.spec import Attention

from .cases import CASES, NATIVE
from .checkpoints import Saved
from .parity import Trial
from .rank_group import Job, RankGroup, RefusedError

KERNELS = ("", "off")  # the best of this CPU; none


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("case", "size"), [(name, size) for name in NATIVE for size in CASES[name].ranks if size > 1])
def test_ranks_give_the_logits_of_transformers(
    case: str,
    size: int,
    kernels: str,
    saved: Callable[[str], Saved],
    sequences: list[list[int]],
    ranks: Callable[[int], RankGroup],
) -> None:
    """One KV head on two ranks (Falcon 7B) is replicated; the vocabulary of 99 is padded; every layout occurs."""
    reference = saved(case)
    trial = Trial.of(reference, sequences)
    trial.check(ranks(size).logits(Job(reference.folder, trial.sequences, trial.prompts, kernels)), f"{size} ranks")


@pytest.mark.parametrize(
    ("case", "dtype"), [("llama", "bfloat16"), ("llama", "float16"), ("t5, 1.1, 97 columns", "float16")]
)
@pytest.mark.parametrize("kernels", KERNELS)
def test_half_precision_on_two_ranks_stays_near(
    kernels: str,
    case: str,
    dtype: str,
    saved: Callable[[str], Saved],
    sequences: list[list[int]],
    ranks: Callable[[int], RankGroup],
) -> None:
    reference = saved(case)
    prompts = reference.prompts(sequences)
    found = ranks(2).logits(Job(reference.folder, sequences, prompts, kernels=kernels, dtype=dtype))
    expected = torch.cat([reference.logits(tokens, prompts.get(i)) for i, tokens in enumerate(sequences)])
    assert (torch.cat(found) - expected).square().mean() < (0.15 * expected).square().mean()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "message"),
    [(6, 6, 4, "6 attention heads"), (12, 6, 4, "6 KV heads"), (12, 3, 4, "3 KV heads cannot be replicated")],
)
def test_heads_that_do_not_divide_are_refused(heads: int, kv_heads: int, size: int, message: str) -> None:
    spec = Attention(num_heads=heads, num_kv_heads=kv_heads, head_dim=8, position=None)
    with pytest.raises(ShardingError, match=f"{message}.* {size} shards"):
        local_attention(spec, Rank(0, size))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 8, 2), (8, 4, 2), (8, 2, 4), (8, 1, 4), (6, 3, 3)])
def test_the_ranks_hold_each_head_where_attention_looks_for_it(
    heads: int, kv_heads: int, size: int, grouped: bool
) -> None:
    """A stored tensor whose rows name their head: each rank must get its q heads, then the k and v heads they read."""
    group = heads // kv_heads
    q, k, v = ([f"{kind}{index}" for index in range(n)] for kind, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
    stored = q + k + v
    if grouped:
        stored = [name for at in range(kv_heads) for name in (*q[at * group : (at + 1) * group], k[at], v[at])]
    names = Names(
        embed="", layer="", final_norm="", attn_norm="", qkv="qkv", out="", up="", down="", qkv_grouped=grouped
    )
    spec = Attention(num_heads=heads, num_kv_heads=kv_heads, head_dim=1, position=None)
    for index in range(size):
        local, mine, _ = local_attention(spec, Rank(index, size))
        rows = [row for piece in qkv_pieces(names, spec, Rank(index, size)) for row in range(piece.start, piece.stop)]
        read = sorted({head // group for head in mine})
        assert [stored[row] for row in rows] == [q[i] for i in mine] + [k[i] for i in read] + [v[i] for i in read]
        assert (local.num_heads, local.num_kv_heads) == (len(mine), len(read))


def test_a_rank_reads_only_its_part(saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of every matrix, the norms whole; the vocabulary of 99 is cut into 50 and 49 rows."""
    read: list[torch.Tensor] = []
    original = Checkpoint.read

    def spy(self: Checkpoint, name: str, shape: tuple[int, ...], *parts: slice) -> torch.Tensor:
        read.append(original(self, name, shape, *parts))
        return read[-1]

    monkeypatch.setattr(Checkpoint, "read", spy)
    reference = saved("llama")
    whole = sum(parameter.numel() for parameter in reference.reference.parameters() if parameter.ndim == 2)
    for rank, vocabulary_rows in enumerate((50, 49)):
        read.clear()
        model = load_model(
            reference.folder, dtype=torch.float32, device=torch.device("cpu"), group=Group(rank=rank, size=2)
        )
        matrices = sum(tensor.numel() for tensor in read if tensor.ndim == 2)
        assert matrices == (whole - 2 * 99 * 64) // 2 + 2 * vocabulary_rows * 64
        assert model.page_bytes() == 3 * 16 * 2 * 1 * 16 * 4  # one of two KV heads


@pytest.mark.parametrize(
    ("case", "size", "message"),
    [("llama", 3, "4 attention heads"), ("gpt2, scaled by layer", 8, "4 attention heads"), ("qwen3", 5, "--num-shard")],
)
def test_a_model_that_does_not_divide_is_refused_at_load(
    case: str, size: int, message: str, saved: Callable[[str], Saved]
) -> None:
    with pytest.raises(ShardingError, match=message):
        load_model(saved(case).folder, dtype=torch.float32, device=torch.device("cpu"), group=Group(0, size))


def test_what_the_ranks_refuse_is_said(ranks: Callable[[int], RankGroup], tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"rank 0: ConfigError: .*config\.json.*rank 1: ConfigError"):
        ranks(2).logits(Job(tmp_path, [[1]]))
