"""Which part of each weight a rank holds (Shoeybi et al. 2019): attention by heads, the MLP by columns, the vocabulary
by rows. Pure: sizes in, ranges out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from millrace_worker.models.names import Names
from millrace_worker.models.spec import Attention, FeedForward, LatentAttention, Mlp


class ShardingError(ValueError):
    """The model does not divide over so many ranks; the message has the numbers."""


# Columns are cut at multiples of these, the first that fits: kernels compute whole blocks best.
_BLOCKS = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Rank:
    """Rank `index` of `size`. `unit`: columns that are not to be parted, as they share a scale."""

    index: int
    size: int
    unit: int = 1

    def share(self, total: int, what: str) -> range:
        """This rank's equal part of `total`. Raises ShardingError when it does not divide."""
        if total % self.size:
            raise ShardingError(f"{total} {what} do not divide over {self.size} shards; choose --num-shard accordingly")
        part = total // self.size
        return range(self.index * part, (self.index + 1) * part)

    def columns(self, total: int, what: str) -> range:
        """This rank's part of `total` columns whose products are added up over the ranks: equal where it divides, else
        nearly so, in whole units or else blocks as long as every rank gets one. Raises ShardingError when there are too
        few."""
        if total < self.size:
            raise ShardingError(f"{total} {what} are too few for {self.size} shards; choose --num-shard accordingly")
        units = -(-total // self.unit)
        if self.unit > 1 and units >= self.size:
            begin, end = (index * units // self.size for index in (self.index, self.index + 1))
            return range(begin * self.unit, min(end * self.unit, total))
        if total % self.size == 0:
            return self.share(total, what)
        block = next(size for size in _BLOCKS if total % size == 0 and total // size >= self.size)
        begin, end = (index * (total // block) // self.size for index in (self.index, self.index + 1))
        return range(begin * block, end * block)

    def padded_share(self, total: int) -> range:
        """This rank's part of `total` when every rank's has the same length and the last may end beyond `total`."""
        part = -(-total // self.size)
        return range(self.index * part, (self.index + 1) * part)


def check_whole(rank: Rank) -> None:
    """For layers that are not split. Raises ShardingError for more than one rank."""
    if rank.size > 1:
        raise ShardingError(f"recurrent layers are not split over shards: --num-shard is {rank.size}, set it to 1")


def check_divides(attention: Attention | LatentAttention, mlp: FeedForward, rank: Rank) -> None:
    """For layers that are split. Raises ShardingError, with the numbers, where heads or columns cannot be."""
    if isinstance(attention, Attention):
        local_attention(attention, rank)
    else:
        rank.share(attention.num_heads, "attention heads")
    if isinstance(mlp, Mlp):
        rank.columns(mlp.size, "columns of the MLP")
        return
    rank.columns(mlp.expert.size, "columns of each expert")
    if mlp.shared is not None:
        rank.columns(mlp.shared.size, "columns of the shared expert")


@dataclass(frozen=True)
class Piece:
    """Rows `start .. stop` of the stored tensor `name` (in its (out, in) form), which has `rows` of them."""

    name: str
    rows: int
    start: int
    stop: int

    @property
    def part(self) -> range:
        return range(self.start, self.stop)


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


def qkv_pieces(names: Names, spec: Attention, rank: Rank, at: str = "") -> list[Piece]:
    """The rows of this rank's fused projection, in the order all q, all k, all v. `at`: what names begin with."""
    _, heads, kv_heads = local_attention(spec, rank)
    size, all_heads, all_kv = spec.head_dim, spec.num_heads, spec.num_kv_heads
    places = _head_places(names, spec, heads, kv_heads)
    stored = {"q": all_heads, "k": all_kv, "v": all_kv, "kv": 2 * all_kv, "qkv": all_heads + 2 * all_kv}
    pieces = []
    for kind, path, runs in places:
        pieces += [Piece(at + path, stored[kind] * size, a * size, b * size) for a, b in _runs(runs)]
    return pieces


def _head_places(names: Names, spec: Attention, heads: range, kv_heads: range) -> list[tuple[str, str, list[int]]]:
    """What a stored tensor holds, its name, and the places of this rank's heads in it."""
    all_heads, all_kv = spec.num_heads, spec.num_kv_heads
    q_at, k_at, v_at = list(heads), list(kv_heads), [all_kv + head for head in kv_heads]
    match names.qkv:
        case (q, k, v):
            return [("q", q, q_at), ("k", k, k_at), ("v", v, k_at)]
        case (q, kv):
            return [("q", q, q_at), ("kv", kv, k_at + v_at)]
        case str() as path if names.qkv_grouped:
            group = all_heads // all_kv
            q_at = [head // group * (group + 2) + head % group for head in heads]
            k_at = [head * (group + 2) + group for head in kv_heads]
            return [("qkv", path, q_at + k_at + [at + 1 for at in k_at])]
        case str() as path:
            return [("qkv", path, q_at + [all_heads + at for at in k_at + v_at])]
        case other:
            raise ValueError(f"q, k and v are in one, two or three tensors, not {other}")


def up_pieces(names: Names, spec: Mlp, rank: Rank, at: str = "") -> list[Piece]:
    """The rows of this rank's first projection; with a gate, the gate's before the other's."""
    part = rank.columns(spec.size, "columns of the MLP")
    if isinstance(names.up, tuple):
        return [Piece(at + path, spec.size, part.start, part.stop) for path in names.up]
    if not spec.gated:
        return [Piece(at + names.up, spec.size, part.start, part.stop)]
    begins = (0, spec.size)
    return [Piece(at + names.up, 2 * spec.size, first + part.start, first + part.stop) for first in begins]


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """`places` as half-open runs of successive numbers, in their order."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs
