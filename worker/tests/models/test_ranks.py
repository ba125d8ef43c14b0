"""Tensor parallelism: two processes over gloo give the logits of transformers; what does not divide is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
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

from . import cases
from .checkpoints import Saved

# One KV head on two ranks (falcon 7B) is replicated; the vocabulary of 99 is padded; every kind of layout occurs.
CASES = [name for name in cases.NATIVE if 2 in cases.CASES[name].ranks]
KERNELS = ("", "off")  # the best of this CPU; none


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_ranks_equal_one(saved: Callable[[str], Saved], sequences: list[list[int]], tmp_path: Path) -> None:
    references = [saved(case) for case in CASES]
    job = tmp_path / "job.json"
    models = [(str(reference.folder), "float32", kernels) for kernels in KERNELS for reference in references]
    models += [(models[0][0], dtype, kernels) for dtype in ("bfloat16", "float16") for kernels in KERNELS]
    job.write_text(json.dumps({"models": models, "sequences": sequences, "seed": 5}))
    common = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(job)]
    ranks = [subprocess.Popen(command, env=common | {"RANK": str(rank)}) for rank in range(2)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    found = torch.load(job.with_suffix(".pt"))
    full, halved = found[: -2 * len(KERNELS)], found[-2 * len(KERNELS) :]
    for each in halved:
        for logits, exact in zip(each, full[0], strict=True):
            torch.testing.assert_close(logits, exact, atol=0.5, rtol=0.0)
    for case, reference, ours in zip(CASES * len(KERNELS), references * len(KERNELS), full, strict=True):
        for tokens, logits in zip(sequences, ours, strict=True):
            expected = reference.logits(tokens)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5, msg=lambda m, case=case: f"{case}: {m}")


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
