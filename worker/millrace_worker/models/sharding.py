"""Which part of each weight a rank holds (Shoeybi et al. 2019): attention by heads, the MLP by columns, the vocabulary
by rows. Pure: sizes in, ranges out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from millrace_worker.models.names import Names
from millrace_worker.models.spec import Attention, Mlp


class ShardingError(ValueError):
    """The model does not divide over so many ranks; the message has the numbers."""


@dataclass(frozen=True)
class Rank:
    """Rank `index` of `size`."""

    index: int
    size: int

    def share(self, total: int, what: str) -> range:
        """This rank's equal part of `total`. Raises ShardingError when it does not divide."""
        if total % self.size:
            raise ShardingError(f"{total} {what} do not divide over {self.size} shards; choose --num-shard accordingly")
        part = total // self.size
        return range(self.index * part, (self.index + 1) * part)

    def padded_share(self, total: int) -> range:
        """This rank's part of `total` when every rank's has the same length and the last may end beyond `total`."""
        part = -(-total // self.size)
        return range(self.index * part, (self.index + 1) * part)


@dataclass(frozen=True)
class Piece:
    """Rows `start .. stop` of the stored tensor `name` (in its (out, in) form), which has `rows` of them."""

    name: str
    rows: int
    start: int
    stop: int


def local_attention(spec: Attention, rank: Rank) -> tuple[Attention, range, range]:
    """The attention of one rank, and its query heads and KV heads among all.

    KV heads are replicated when there are fewer than ranks: each rank then holds the one that its query heads read.
    """
    heads = rank.share(spec.num_heads, "attention heads")
    if spec.num_kv_heads >= rank.size:
        kv_heads = rank.share(spec.num_kv_heads, "KV heads")
    else:
        if rank.size % spec.num_kv_heads:
            raise ShardingError(
                f"{spec.num_kv_heads} KV heads cannot be replicated evenly over {rank.size} shards; "
                "choose --num-shard accordingly"
            )
        head = rank.index * spec.num_kv_heads // rank.size
        kv_heads = range(head, head + 1)
    return replace(spec, num_heads=len(heads), num_kv_heads=len(kv_heads)), heads, kv_heads


def qkv_pieces(names: Names, spec: Attention, rank: Rank) -> list[Piece]:
    """The rows of this rank's fused projection, in the order all q, all k, all v."""
    _, heads, kv_heads = local_attention(spec, rank)
    size, all_heads, all_kv = spec.head_dim, spec.num_heads, spec.num_kv_heads
    if isinstance(names.qkv, tuple):
        q, k, v = names.qkv
        return [
            Piece(q, all_heads * size, heads.start * size, heads.stop * size),
            Piece(k, all_kv * size, kv_heads.start * size, kv_heads.stop * size),
            Piece(v, all_kv * size, kv_heads.start * size, kv_heads.stop * size),
        ]
    group = all_heads // all_kv
    if names.qkv_grouped:
        q_at = [head // group * (group + 2) + head % group for head in heads]
        k_at = [head * (group + 2) + group for head in kv_heads]
        v_at = [at + 1 for at in k_at]
    else:
        q_at = list(heads)
        k_at = [all_heads + head for head in kv_heads]
        v_at = [all_heads + all_kv + head for head in kv_heads]
    rows = (all_heads + 2 * all_kv) * size
    return [Piece(names.qkv, rows, a * size, b * size) for a, b in _runs([*q_at, *k_at, *v_at])]


def up_pieces(names: Names, spec: Mlp, rank: Rank) -> list[Piece]:
    """The rows of this rank's first projection; with a gate, the gate's before the other's."""
    part = rank.share(spec.size, "columns of the MLP")
    paths = names.up if isinstance(names.up, tuple) else (names.up,)
    return [Piece(path, spec.size, part.start, part.stop) for path in paths]


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """`places` as half-open runs of successive numbers, in their order."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs
