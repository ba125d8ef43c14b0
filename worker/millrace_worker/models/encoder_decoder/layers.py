"""Layers of both stacks. P tokens of a prompt, T of the decoder, D hidden width, N heads of this rank, H head_dim.

The residual stream is float32; `delta` is the update not yet added to it. Scores are not scaled: T5 has that in its
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.distributed import Group
from millrace_worker.layers.linear import Linear
from millrace_worker.layers.norm import Norm
from millrace_worker.models.decoder import FeedForward, Named
from millrace_worker.models.encoder_decoder.bias import DistanceBias
from millrace_worker.models.encoder_decoder.state import RowStates, Writing

# Values that the bias of one block of queries may have. Kernels on CPUs read it where it lies, those on GPUs want it
# written out.
MAX_BIAS_VALUES = 1 << 24


@dataclass(frozen=True)
class SelfAttention:
    norm: Norm
    qkv: Linear  # [T, 3 * N * H]: all of q, then k, then v
    out: Linear


@dataclass(frozen=True)
class CrossAttention:
    """The decoder's attention to what was encoded."""

    norm: Norm
    query: Linear
    kv: Linear  # of what was encoded: [P, 2 * N * H]
    out: Linear


@dataclass(frozen=True)
class Block:
    """What both kinds of layers end with, and who adds up their parts."""

    norm: Norm
    mlp: FeedForward
    group: Group

    def __call__(self, x: Tensor, delta: Tensor) -> Tensor:
        return self.group.all_reduce(self.mlp(self.norm.add(x, delta)))


@dataclass(frozen=True)
class EncoderLayer:
    attention: SelfAttention
    block: Block
    num_heads: int

    @property
    def linears(self) -> tuple[Named, ...]:
        return self.attention.qkv, self.attention.out, *self.block.mlp.linears

    def __call__(self, x: Tensor, delta: Tensor | None, bias: DistanceBias) -> Tensor:
        """Of one prompt."""
        qkv = self.attention.qkv(self.attention.norm.add(x, delta))
        q, k, v = qkv.view(len(x), 3, self.num_heads, -1).permute(1, 2, 0, 3)
        attended = torch.empty(len(x), self.num_heads, q.shape[2], dtype=qkv.dtype, device=qkv.device)
        _attend_by_distance((q, k, v), 0, bias, attended)
        return self.block(x, self.block.group.all_reduce(self.attention.out(attended.flatten(1))))


@dataclass(frozen=True)
class DecoderLayer:
    index: int
    attention: SelfAttention
    cross: CrossAttention
    block: Block
    num_heads: int

    @property
    def linears(self) -> tuple[Named, ...]:
        cross = self.cross
        return self.attention.qkv, self.attention.out, cross.query, cross.kv, cross.out, *self.block.mlp.linears

    def read(self, encoded_PD: Tensor, row: int, states: RowStates) -> None:
        """Keeps what later tokens of the row attend to."""
        states.write(self.index, row, 0, self.cross.kv(encoded_PD).view(len(encoded_PD), 2, self.num_heads, -1))

    def __call__(
        self, x: Tensor, delta: Tensor | None, writings: Sequence[Writing], states: RowStates, bias: DistanceBias
    ) -> Tensor:
        all_reduce = self.block.group.all_reduce
        qkv = self.attention.qkv(self.attention.norm.add(x, delta)).view(len(x), 3, self.num_heads, -1)
        attended = torch.empty_like(qkv[:, 0])
        for each in writings:
            states.write(self.index, each.row, each.own_slots.stop - each.count, qkv[each.tokens, 1:])
            k, v = states.read(self.index, each.row, each.own_slots)
            _attend_by_distance((qkv[each.tokens, 0].transpose(0, 1), k, v), each.first, bias, attended[each.tokens])
        delta = all_reduce(self.attention.out(attended.flatten(1)))
        q = self.cross.query(self.cross.norm.add(x, delta)).view(len(x), self.num_heads, -1)
        attended = torch.empty_like(q)
        for each in writings:
            k, v = states.read(self.index, each.row, slice(0, each.num_prompt_tokens))
            attended[each.tokens] = _attend((q[each.tokens].transpose(0, 1), k, v), None).transpose(0, 1)
        return self.block(x, all_reduce(self.cross.out(attended.flatten(1))))


def _attend_by_distance(qkv: tuple[Tensor, Tensor, Tensor], first: int, bias: DistanceBias, out_TNH: Tensor) -> None:
    """Of the queries from position `first` on, into `out_TNH`; see `_attend`."""
    q_NTH, k, v = qkv
    num_heads, num_queries, _ = q_NTH.shape
    block = max(1, MAX_BIAS_VALUES // (num_heads * k.shape[1]))
    for start in range(0, num_queries, block):
        queries = q_NTH[:, start : start + block].flip(1)
        added = bias.backwards(first + start, queries.shape[1], k.shape[1])
        added = added if added.device.type == "cpu" else added.to(q_NTH.dtype).contiguous()
        out_TNH[start : start + block] = _attend((queries, k, v), added).flip(1).transpose(0, 1)


def _attend(qkv: tuple[Tensor, Tensor, Tensor], bias_NTS: Tensor | None) -> Tensor:
    """[N, T, H] for q [N, T, H] and k, v [N, S, H]."""
    q, k, v = (each[None] for each in qkv)
    bias = None if bias_NTS is None else bias_NTS[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)[0]
