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
from millrace_worker.models.encoder_decoder.bias import DecoderBias, EncoderBias
from millrace_worker.models.encoder_decoder.state import RowStates, Writing

# Values that the bias of one block of the encoder's queries may have.
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

    def __call__(self, x: Tensor, delta: Tensor | None, bias: EncoderBias) -> Tensor:
        """Of one prompt."""
        qkv = self.attention.qkv(self.attention.norm.add(x, delta))
        q, k, v = qkv.view(len(x), 3, self.num_heads, -1).permute(1, 2, 0, 3)
        attended = torch.empty(len(x), self.num_heads, q.shape[2], dtype=qkv.dtype, device=qkv.device)
        block = max(1, MAX_BIAS_VALUES // (self.num_heads * len(x)))
        for first in range(0, len(x), block):
            queries = q[:, first : first + block]
            added = bias(first, queries.shape[1], len(x)).to(qkv.dtype)
            attended[first : first + block] = _attend(queries, k, v, added).transpose(0, 1)
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
        self, x: Tensor, delta: Tensor | None, writings: Sequence[Writing], states: RowStates, bias: DecoderBias
    ) -> Tensor:
        all_reduce = self.block.group.all_reduce
        qkv = self.attention.qkv(self.attention.norm.add(x, delta)).view(len(x), 3, self.num_heads, -1)
        attended = torch.empty_like(qkv[:, 0])
        for each in writings:
            states.write(self.index, each.row, each.own_slots.stop - each.count, qkv[each.tokens, 1:])
            k, v = states.read(self.index, each.row, each.own_slots)
            added = bias(each.first, each.count).to(qkv.dtype)
            attended[each.tokens] = _attend(qkv[each.tokens, 0].transpose(0, 1), k, v, added).transpose(0, 1)
        delta = all_reduce(self.attention.out(attended.flatten(1)))
        q = self.cross.query(self.cross.norm.add(x, delta)).view(len(x), self.num_heads, -1)
        attended = torch.empty_like(q)
        for each in writings:
            k, v = states.read(self.index, each.row, slice(0, each.num_prompt_tokens))
            attended[each.tokens] = _attend(q[each.tokens].transpose(0, 1), k, v, None).transpose(0, 1)
        return self.block(x, all_reduce(self.cross.out(attended.flatten(1))))


def _attend(q_NTH: Tensor, k_NSH: Tensor, v_NSH: Tensor, bias: Tensor | None) -> Tensor:
    """[N, T, H]; bias [N, T, S]."""
    bias = None if bias is None else bias[None]
    return F.scaled_dot_product_attention(q_NTH[None], k_NSH[None], v_NSH[None], attn_mask=bias, scale=1.0)[0]
