"""A model of transformers that keeps a cache of its own for each sequence: rows run one after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from millrace_worker.models.hosted.body import Body
from millrace_worker.models.hosted.paged import Facts
from millrace_worker.step import Batch

# Two lengths at which a cache is weighed, to know what it has per sequence and what per token.
SHORT, LONG = 8, 24


class HostedRowModel:
    """As `model.Model` describes it, without pages: a row holds its sequence's cache, whatever that is."""

    implementation = "transformers, a cache per sequence"
    page_size = 0
    encodes_prompts = False

    def __init__(self, facts: Facts, body: Body, reason: str, *, takes_chunks: bool) -> None:
        """`reason`: why it does not run over pages. `takes_chunks`: whether several tokens may follow a cache."""
        self.vocab_size, self.max_positions = facts.vocab_size, facts.max_positions
        self._group, self._body, self._takes_chunks = facts.group, body, takes_chunks
        self.operators: dict[str, str] = {}
        self._caches: dict[int, Any] = {}
        self._fixed_bytes, self._token_bytes = 0, 0
        alone = "each sequence has a cache of its own"
        self.missing: Mapping[str, str] = {
            "batched_forward": f"{reason}: its sequences run one after another",
            "prefix_caching": alone,
            "page_copies": alone,
        }
        if not takes_chunks:
            later = "after the first part of a prompt this model takes one token at a time"
            self.missing = {**self.missing, "chunked_prefill": later}

    def plan(self, batch: Batch) -> Batch:
        return batch

    @torch.inference_mode()
    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: Batch) -> Tensor:
        parts, done = [], 0
        for row, start, count in zip(step.rows.tolist(), step.starts.tolist(), step.counts.tolist(), strict=True):
            if start == 0:
                self._caches.pop(row, None)
            at_once = count if start == 0 or self._takes_chunks else 1
            for first in range(done, done + count, at_once):
                part = slice(first, first + at_once)
                found, self._caches[row] = self._body.cached(
                    token_ids_T[part], positions_T[part], self._caches.get(row)
                )
                parts.append(found)
            done += count
        return torch.cat(parts)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor | None:
        logits = self._body.logits(hidden_RD)
        return logits.float() if self._group.rank == 0 else None

    def allocate_rows(self, max_rows: int, max_sequence_tokens: int) -> None:
        """A cache is made as its sequence begins and grows with it: what rows may take is reckoned, not taken."""
        del max_rows, max_sequence_tokens
        self._caches.clear()

    def forget_rows(self, rows: Iterable[int]) -> None:
        for row in rows:
            self._caches.pop(row, None)

    def row_bytes(self, max_sequence_tokens: int) -> int:
        return max(1, self._fixed_bytes + self._token_bytes * max_sequence_tokens)

    def weigh(self, tokens_T: Tensor) -> None:
        """Learns what a cache takes, from two prompts of `tokens_T`."""
        with torch.inference_mode():
            short, long = (self._cache_bytes(tokens_T[:length]) for length in (SHORT, LONG))
        self._token_bytes = max(0, -(-(long - short) // (LONG - SHORT)))
        self._fixed_bytes = max(0, long - self._token_bytes * LONG)

    def _cache_bytes(self, tokens_T: Tensor) -> int:
        positions = torch.arange(len(tokens_T), device=tokens_T.device)
        _, cache = self._body.cached(tokens_T, positions, None)
        return _bytes_of(cache, set())

    def implementations(self) -> dict[str, str]:
        return {"attention": "the model's own", **self.operators}


def _bytes_of(value: Any, seen: set[int]) -> int:
    """Bytes of all tensors that `value` leads to, each storage once."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        known = storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        return 0 if known else storage.nbytes()
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Mapping):
        return sum(_bytes_of(each, seen) for each in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes_of(each, seen) for each in value)
    return _bytes_of(vars(value), seen) if type(value).__module__.startswith("transformers") else 0
