"""Latent attention as a layer: from the normalized stream to queries, a latent and a shared key, and back.

T tokens, D hidden width, N heads of this rank, L width of a latent, W of latent and shared key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from millrace_worker.attention.latent_backend import LatentBackend, LatentHeads
from millrace_worker.attention.rotary import rotate_
from millrace_worker.layers.linear import Linear
from millrace_worker.layers.norm import Norm
from millrace_worker.layers.qkv import Places


@dataclass(frozen=True)
class QueryLatent:
    """Queries of models that compress them too: norm(down(h))."""

    down: Linear
    norm: Norm

    def __call__(self, h_TD: Tensor) -> Tensor:
        return self.norm(self.down(h_TD))


@dataclass(frozen=True, kw_only=True)
class LatentAttentionLayer:
    query_latent: QueryLatent | None
    query: Linear  # [T, N * (plain, rotated)] of the queries' latent, or of h
    down: Linear  # [T, W]
    norm: Norm  # of the latent
    out: Linear
    heads: LatentHeads
    rotary: int  # which of the model's rotary tables
    backend: LatentBackend

    @property
    def linears(self) -> tuple[Linear, ...]:
        queries = (self.query,) if self.query_latent is None else (self.query_latent.down, self.query)
        return *queries, self.down, self.out

    def __call__(self, h_TD: Tensor, places: Places, step: Any) -> Tensor:
        heads, rotation = self.heads, places.rotations[self.rotary]
        compressed = h_TD if self.query_latent is None else self.query_latent(h_TD)
        q_TNH = self.query(compressed).view(len(h_TD), heads.num_heads, heads.query_dim)
        down_TW = self.down(h_TD)
        kept_TW = torch.empty(down_TW.shape, dtype=q_TNH.dtype, device=q_TNH.device)
        kept_TW[:, : heads.latent_dim] = self.norm(down_TW[:, : heads.latent_dim].contiguous())
        kept_TW[:, heads.latent_dim :] = down_TW[:, heads.latent_dim :]
        rotate_(q_TNH[..., heads.plain_dim :], rotation, heads.pairs)
        rotate_(kept_TW[:, None, heads.latent_dim :], rotation, heads.pairs)
        return self.out(self.backend.attend_latent(heads, q_TNH, kept_TW, step))
