"""Latent attention over pages in plain torch (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1).

A token's keys and values of all heads are made of one vector, its latent, and of one rotated key that the heads share:
the pool keeps those two only. With a head's matrices U_k and U_v, and a latent c,

    q . (U_k c) = (U_k^T q) . c        sum of w_i (U_v c_i) = U_v (sum of w_i c_i)

so that a head may attend to the latents themselves (the absorbed form: nothing is made for a key, but scores are sums
over a whole latent), or to the keys and values made of them (the expanded form: short sums). A row of one token takes
the first, a chunk the one with fewer multiplications.

Letters: T tokens, N query heads of this rank, L width of a latent, W of what the pool keeps (latent and shared key).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from millrace_worker.attention.interface import ScoreRule
from millrace_worker.attention.pooled import PAGE_SIZE
from millrace_worker.attention.rotary import Pairs
from millrace_worker.attention.torch_backend import ChunkPart, DecodePart, RulePlan, TorchBackend, TorchStep

# Values that the expanded keys of some heads may have at once; their values take as many again.
MAX_EXPANDED = 1 << 23


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentHeads:
    """The latent attention of one layer on this rank."""

    layer: int
    num_heads: int
    latent_dim: int  # L
    shared_dim: int  # of the rotated key that the heads share
    plain_dim: int  # of the part of q and k that is not rotated
    value_dim: int
    scale: float
    pairs: Pairs  # of the rotated dimensions
    up: Tensor  # [N, plain_dim + value_dim, L]: U_k, then U_v
    rule: ScoreRule = field(default_factory=ScoreRule)

    @property
    def width(self) -> int:
        """W: values per token that the KV pool keeps for this layer."""
        return self.latent_dim + self.shared_dim

    @property
    def query_dim(self) -> int:
        """Of one head: its plain part, then its rotated part."""
        return self.plain_dim + self.shared_dim

    @property
    def up_k(self) -> Tensor:
        """[N, plain_dim, L]"""
        return self.up[:, : self.plain_dim]

    @property
    def up_v(self) -> Tensor:
        """[N, value_dim, L]"""
        return self.up[:, self.plain_dim :]


class LatentBackend(TorchBackend):
    """The pool of latents of one rank, the same on every rank, and attention of this rank's heads over it."""

    name = "torch (latent)"

    def attend_latent(self, heads: LatentHeads, q_TNH: Tensor, kept_TW: Tensor, step: TorchStep) -> Tensor:
        """Writes `kept_TW` (latent and shared key, normed and rotated) to its slots and attends with `q_TNH` (plain and
        rotated part). Returns [T, N * value_dim]."""
        self.pool.slots[heads.layer].index_copy_(0, step.slots, kept_TW)
        plan, num_tokens = step.plans[heads.rule], len(q_TNH)
        if len(plan.decodes) == 1 and plan.decodes[0].num_rows == num_tokens:
            return self._decode_latent(heads, q_TNH, plan.decodes[0]).reshape(num_tokens, -1)
        out_TNV = q_TNH.new_empty(num_tokens, heads.num_heads, heads.value_dim)
        for part in plan.decodes:
            out_TNV[part.tokens] = self._decode_latent(heads, q_TNH[part.tokens], part)
        for part in plan.chunks:
            self._chunk_latent(heads, q_TNH[part.chunk.tokens], out_TNV[part.chunk.tokens], part, plan)
        return out_TNV.view(num_tokens, -1)

    def _decode_latent(self, heads: LatentHeads, q_BNH: Tensor, part: DecodePart) -> Tensor:
        """[B, N, value_dim]. The heads of a row stand as queries of one head, whose keys are its values too."""
        kept = self._kept(heads, part.pages, part.num_rows, part.num_keys)
        q = absorb(heads, q_BNH.transpose(0, 1)).transpose(0, 1)[:, None]
        latents_BNL = F.scaled_dot_product_attention(q, kept, kept, attn_mask=part.bias, scale=heads.scale)[:, 0]
        return _values(heads, latents_BNL.transpose(0, 1)).transpose(0, 1)

    def _chunk_latent(
        self, heads: LatentHeads, q_CNH: Tensor, out_CNV: Tensor, part: ChunkPart, plan: RulePlan
    ) -> None:
        kept = self._kept(heads, part.pages, 1, len(part.pages) * PAGE_SIZE)
        num_keys = part.chunk.start - part.chunk.first_key + len(q_CNH)
        attend = _attend_expanded if expanding_pays(heads, len(q_CNH), num_keys) else _attend_absorbed
        bias, q_NCH, out_NCV = plan.tail_bias, q_CNH.transpose(0, 1), out_CNV.transpose(0, 1)
        assert bias is not None, "a step with chunks has a bias for them"
        attend(heads, q_NCH, kept[0, 0, :num_keys], out_NCV, ChunkBias(bias, part.blocks))

    def _kept(self, heads: LatentHeads, pages: Tensor, num_rows: int, num_keys: int) -> Tensor:
        """[num_rows, 1, num_keys, W], valid until the next call."""
        gathered = self._gather_pages(heads.layer, pages)
        return gathered.view(num_rows, 1, -1, heads.width)[:, :, :num_keys]


@dataclass(frozen=True)
class ChunkBias:
    """What is added to a chunk's scores: its queries stand at the last keys; `blocks` of them attend together."""

    tail: Tensor  # [1, queries, keys]: its last rows and columns serve every block
    blocks: tuple[tuple[int, int], ...]

    def block(self, first: int, stop: int, num_keys: int) -> Tensor:
        return self.tail[:, self.tail.shape[1] - (stop - first) :, self.tail.shape[2] - num_keys :]


def expanding_pays(heads: LatentHeads, num_queries: int, num_keys: int) -> bool:
    """Whether the expanded form multiplies less, for one head: keys and values are made once, then sums are short."""
    made = heads.latent_dim * (heads.plain_dim + heads.value_dim)
    absorbed = num_queries * (made + 2 * num_keys * heads.width)
    expanded = num_keys * (made + 2 * num_queries * max(heads.query_dim, heads.value_dim))
    return expanded < absorbed


def absorb(heads: LatentHeads, q_NTH: Tensor) -> Tensor:
    """[N, T, W]: queries that attend to what the pool keeps."""
    absorbed = q_NTH.new_empty(*q_NTH.shape[:2], heads.width)
    absorbed[..., : heads.latent_dim] = q_NTH[..., : heads.plain_dim] @ heads.up_k
    absorbed[..., heads.latent_dim :] = q_NTH[..., heads.plain_dim :]
    return absorbed


def _values(heads: LatentHeads, latents_NTW: Tensor) -> Tensor:
    """[N, T, value_dim] of weighted sums of what the pool keeps: their shared keys mean nothing."""
    return latents_NTW[..., : heads.latent_dim] @ heads.up_v.transpose(1, 2)


def _attend_absorbed(heads: LatentHeads, q_NCH: Tensor, kept_SW: Tensor, out_NCV: Tensor, bias: ChunkBias) -> None:
    before = len(kept_SW) - q_NCH.shape[1]
    for first, stop in bias.blocks:
        kept = kept_SW[None, None, : before + stop]
        q, mask = absorb(heads, q_NCH[:, first:stop])[None], bias.block(first, stop, before + stop)
        latents = F.scaled_dot_product_attention(q, kept, kept, attn_mask=mask, scale=heads.scale, enable_gqa=True)
        out_NCV[:, first:stop] = _values(heads, latents[0])


def _attend_expanded(heads: LatentHeads, q_NCH: Tensor, kept_SW: Tensor, out_NCV: Tensor, bias: ChunkBias) -> None:
    """A few heads at a time, so that what is made for a long context stays small."""
    num_keys, width = len(kept_SW), max(heads.query_dim, heads.value_dim)
    before = num_keys - q_NCH.shape[1]
    latents, shared = kept_SW[:, : heads.latent_dim], kept_SW[:, heads.latent_dim :]
    together = max(1, min(heads.num_heads, MAX_EXPANDED // (num_keys * width)))
    # Kernels want queries, keys and values of one width: zeros fill them up.
    q_NCE = F.pad(q_NCH, (0, width - heads.query_dim))
    k_NSE, v_NSE = kept_SW.new_zeros(2, together, num_keys, width).unbind()
    for head in range(0, heads.num_heads, together):
        some = slice(head, min(head + together, heads.num_heads))
        k, v = k_NSE[: some.stop - head], v_NSE[: some.stop - head]
        k[..., : heads.plain_dim] = latents @ heads.up_k[some].transpose(1, 2)
        k[..., heads.plain_dim : heads.query_dim] = shared
        v[..., : heads.value_dim] = latents @ heads.up_v[some].transpose(1, 2)
        for first, stop in bias.blocks:
            seen, mask = slice(0, before + stop), bias.block(first, stop, before + stop)
            q = q_NCE[None, some, first:stop]
            found = F.scaled_dot_product_attention(q, k[None, :, seen], v[None, :, seen], mask[None], scale=heads.scale)
            out_NCV[some, first:stop] = found[0, ..., : heads.value_dim]
