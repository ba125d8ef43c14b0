"""Attention over pages in plain torch, on CPUs and GPUs: gather the pages, mask, scaled dot-product attention.

It is the reference for faster backends, and what runs where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from millrace_worker.attention import plan as planning
from millrace_worker.attention.bias import decode_bias, tail_bias
from millrace_worker.attention.interface import Heads, PagedLayer, ScoreRule
from millrace_worker.attention.pooled import PAGE_SIZE, Pooled
from millrace_worker.attention.rotary import Rotation, rotate_
from millrace_worker.step import Batch

# K and V that one gather may hold (on CPUs: what the caches hold until it is read), and what a further operator call
# costs, as bytes gathered in the same time.
GATHER_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
CALL_BYTES = {"cpu": 256 << 10, "cuda": 16 << 20}

# Queries that a chunk attends with at once, and values that one of their biases or score matrices may have. On CPUs
# what is written for every head is to stay far below what a step takes anyway.
CHUNK_QUERIES = 256
MAX_WRITTEN_BIAS = 1 << 24
MAX_WRITTEN_SCORES = {"cpu": 1 << 20, "cuda": 1 << 24}


@dataclass(frozen=True)
class DecodePart:
    """`planning.DecodeGroup` on the device; `pages` is [B * P]."""

    tokens: slice | Tensor
    num_rows: int
    pages: Tensor
    num_keys: int
    bias: Tensor | None


@dataclass(frozen=True)
class ChunkPart:
    """`planning.Chunk` on the device, in blocks of queries (first, stop), counted from the chunk's start."""

    chunk: planning.Chunk
    pages: Tensor
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RulePlan:
    """The step as the layers of one rule see it. `tail_bias` serves every block of every chunk."""

    decodes: tuple[DecodePart, ...]
    chunks: tuple[ChunkPart, ...]
    tail_bias: Tensor | None


@dataclass(frozen=True)
class TorchStep:
    slots: Tensor  # int64 [T]: where each token's K and V go
    plans: dict[ScoreRule, RulePlan]


class TorchBackend(Pooled):
    """The KV pool of one rank and attention over it."""

    name = "torch (gathered pages)"

    def __init__(self, layers: Sequence[PagedLayer], dtype: torch.dtype, device: torch.device) -> None:
        """Raises ValueError when layers keep K and V of different sizes."""
        super().__init__(layers, dtype, device)
        # float32 [K, N / K, 1] of each layer that has them.
        self._sinks = {
            heads.layer: torch.tensor(heads.sinks, device=device).view(heads.num_kv_heads, -1, 1)
            for heads in layers
            if isinstance(heads, Heads) and heads.sinks is not None
        }
        self._rules = list(dict.fromkeys(heads.rule for heads in layers))
        self._num_heads = layers[0].num_heads
        page_bytes = self.geometry.layer_page_bytes
        kind = "cpu" if device.type == "cpu" else "cuda"
        self._max_scores = MAX_WRITTEN_SCORES[kind]
        self._limits = planning.Limits(max(1, GATHER_BYTES[kind] // page_bytes), CALL_BYTES[kind] // page_bytes)
        # Kernels on CPUs take a float32 bias at any dtype; those on GPUs want the queries' own.
        self._bias_dtype = torch.float32 if device.type == "cpu" else dtype
        self._workspace = torch.empty(0, dtype=dtype, device=device)

    def plan(self, batch: Batch) -> TorchStep:
        slots = planning.token_slots(batch, planning.token_positions(batch), PAGE_SIZE)
        begun = planning.begun_pages(batch, PAGE_SIZE)
        if len(begun):
            self.pool.clear(self._device(begun))
        return TorchStep(self._device(slots), {rule: self._plan_rule(batch, rule) for rule in self._rules})

    def _plan_rule(self, batch: Batch, rule: ScoreRule) -> RulePlan:
        if rule.chunk is not None:
            batch = batch.in_chunks(rule.chunk, PAGE_SIZE)
        groups = planning.decode_groups(batch, rule, PAGE_SIZE, self._limits)
        decodes = tuple(self._decode_part(group, rule) for group in groups)
        chunks = planning.chunks(batch, rule, PAGE_SIZE)
        if not chunks:
            return RulePlan(decodes, (), None)
        counts = [chunk.tokens.stop - chunk.tokens.start for chunk in chunks]
        num_keys = max(chunk.start + count - chunk.first_key for chunk, count in zip(chunks, counts, strict=True))
        plain = rule.softcap is None and rule.alibi is None and not self._sinks
        queries = (MAX_WRITTEN_BIAS if plain else self._max_scores // self._num_heads) // num_keys
        block = max(1, min(CHUNK_QUERIES, max(counts), queries))
        parts = []
        for chunk, count in zip(chunks, counts, strict=True):
            blocks = tuple((first, min(first + block, count)) for first in range(0, count, block))
            parts.append(ChunkPart(chunk, self._device(chunk.pages), blocks))
        bias = tail_bias(block, num_keys, rule, self.geometry.device).to(self._bias_dtype)
        return RulePlan(decodes, tuple(parts), bias)

    def _decode_part(self, group: planning.DecodeGroup, rule: ScoreRule) -> DecodePart:
        tokens = group.tokens if isinstance(group.tokens, slice) else self._device(group.tokens)
        pages, bias = self._device(group.pages.reshape(-1)), None
        if rule.alibi is not None or not group.sees_all:
            begins, ends = self._device(group.begins), self._device(group.ends)
            bias = decode_bias(begins, ends, group.num_keys, rule).to(self._bias_dtype)
        return DecodePart(tokens, len(group.pages), pages, group.num_keys, bias)

    def _device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        device = self.geometry.device
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    def attend(self, heads: Heads, qkv_TC: Tensor, rotation: Rotation | None, step: TorchStep) -> Tensor:
        num_tokens, num_heads, size = len(qkv_TC), heads.num_heads, heads.head_dim
        all_heads = qkv_TC.view(num_tokens, -1, size)
        qk = all_heads[:, : num_heads + heads.num_kv_heads]
        if heads.qk_norm is not None:
            qk.copy_(heads.qk_norm(qk))
        if rotation is not None:
            rotate_(qk, rotation, heads.pairs)
        self.pool.slots[heads.layer].index_copy_(0, step.slots, qkv_TC[:, num_heads * size :])
        q_TNH, plan = all_heads[:, :num_heads], step.plans[heads.rule]
        if len(plan.decodes) == 1 and plan.decodes[0].num_rows == num_tokens:
            return self._decode(heads, q_TNH, plan.decodes[0]).reshape(num_tokens, -1)
        out_TNH = torch.empty((num_tokens, num_heads, size), dtype=qkv_TC.dtype, device=qkv_TC.device)
        for part in plan.decodes:
            out_TNH[part.tokens] = self._decode(heads, q_TNH[part.tokens], part).reshape(part.num_rows, num_heads, size)
        for part in plan.chunks:
            self._chunk(heads, q_TNH[part.chunk.tokens], out_TNH[part.chunk.tokens], part, plan)
        return out_TNH.view(num_tokens, -1)

    def _decode(self, heads: Heads, q_BNH: Tensor, part: DecodePart) -> Tensor:
        """[B, K, N / K, H]. A KV head's query heads stand as its query tokens, so that K and V are not repeated."""
        shape = (part.num_rows, heads.num_kv_heads, -1, heads.head_dim)
        k, v = self._gather(heads, part.pages, part.num_rows, part.num_keys)
        bias = part.bias
        if bias is not None and heads.rule.alibi is not None:
            bias = bias.view(part.num_rows, heads.num_kv_heads, -1, part.num_keys)
        return _attention(heads, q_BNH.view(shape), (k, v), bias, self._sinks.get(heads.layer))

    def _chunk(self, heads: Heads, q_CNH: Tensor, out_CNH: Tensor, part: ChunkPart, plan: RulePlan) -> None:
        """A block of queries sees the keys up to its last one, and with a window none before its first one's reach."""
        k, v = self._gather(heads, part.pages, 1, len(part.pages) * PAGE_SIZE)
        q_NCH, shift = q_CNH.transpose(0, 1)[None], part.chunk.start - part.chunk.first_key
        window, bias, sinks = heads.rule.window, plan.tail_bias, self._sinks.get(heads.layer)
        sinks = None if sinks is None else sinks.view(-1, 1, 1)
        assert bias is not None, "a step with chunks has a bias for them"
        for first, stop in part.blocks:
            low = max(0, shift + first - window + 1) if window else 0
            keys = slice(low, shift + stop)
            seen = bias[:, bias.shape[1] - (stop - first) :, bias.shape[2] - (keys.stop - keys.start) :]
            kv = k[:, :, keys], v[:, :, keys]
            out = _attention(heads, q_NCH[:, :, first:stop], kv, seen[None], sinks)
            out_CNH[first:stop] = out[0].transpose(0, 1)

    def _gather(self, heads: Heads, pages: Tensor, num_rows: int, num_keys: int) -> tuple[Tensor, Tensor]:
        """K and V of the first `num_keys` keys of `num_rows` rows of pages: [num_rows, K, num_keys, H] each."""
        gathered = self._gather_pages(heads.layer, pages)
        kv = gathered.view(num_rows, -1, 2, heads.num_kv_heads, heads.head_dim)[:, :num_keys]
        k, v = kv.permute(2, 0, 3, 1, 4).unbind()
        return k, v

    def _gather_pages(self, layer: int, pages: Tensor) -> Tensor:
        """What the pool has in `pages`, one after the other: [pages, page_size * width].

        Valid until the next gather: it lies in one buffer that only grows, since a fresh one for each layer would cost
        more in page faults than the copy.
        """
        stored = self.pool.pages[layer]
        needed = len(pages) * stored.shape[1]
        if len(self._workspace) < needed:
            self._workspace = torch.empty(needed, dtype=stored.dtype, device=stored.device)
        gathered = self._workspace[:needed].view(len(pages), -1)
        torch.index_select(stored, 0, pages, out=gathered)
        return gathered


def _attention(heads: Heads, q: Tensor, kv: tuple[Tensor, Tensor], bias: Tensor | None, sinks: Tensor | None) -> Tensor:
    """softmax(rule(q k^T)) v for q [B, N, Q, H] and k, v [B, K, S, H], N a multiple of K.

    `bias` fits [B, N, Q, S], and `sinks` [N, Q, 1].
    """
    (k, v), softcap = kv, heads.rule.softcap
    if softcap is None and sinks is None:
        shared = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=heads.scale, enable_gqa=shared)
    num_rows, num_heads, num_queries, size = q.shape
    folded = q.reshape(num_rows, k.shape[1], -1, size)
    scores = folded @ k.transpose(-1, -2)
    if softcap is None:
        scores.mul_(heads.scale)
    else:
        scores.mul_(heads.scale / softcap).tanh_().mul_(softcap)
    scores = scores.view(num_rows, num_heads, num_queries, -1)
    if bias is not None:
        scores = scores + bias
    if sinks is None:
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    else:
        columns = sinks.to(scores.dtype).expand(num_rows, num_heads, num_queries, 1)
        weights = torch.cat((scores, columns), dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1].to(q.dtype)
    weights = weights.reshape(num_rows, k.shape[1], -1, k.shape[2])
    return (weights @ v).view(num_rows, num_heads, num_queries, size)
