"""A model of transformers whose attention runs over our pages: it has everything that the native decoder has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from millrace_worker.attention.interface import AttentionBackend
from millrace_worker.distributed import Group
from millrace_worker.model import Reach
from millrace_worker.models.hosted.body import Body
from millrace_worker.models.hosted.layers import PagedAttention
from millrace_worker.step import Batch


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model before it is decided how it runs."""

    vocab_size: int
    max_positions: int
    group: Group


class HostedPagedModel:
    """As `model.Model` describes it, over pages."""

    implementation = "transformers"
    reach = Reach()  # its layers may read all that is there

    def __init__(self, facts: Facts, body: Body, attention: PagedAttention, backend: AttentionBackend) -> None:
        self.backend = backend
        self.vocab_size, self.max_positions, self.page_size = facts.vocab_size, facts.max_positions, backend.page_size
        self.missing: Mapping[str, str] = {}
        self.operators: dict[str, str] = {}
        self._group, self._body, self._attention = facts.group, body, attention

    def plan(self, batch: Batch) -> Any:
        return self.backend.plan(batch)

    @torch.inference_mode()
    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: Any) -> Tensor:
        self._attention.step = step
        return self._body.hidden(token_ids_T, positions_T)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor | None:
        logits = self._body.logits(hidden_RD)
        return logits.float() if self._group.rank == 0 else None

    def allocate_kv(self, num_pages: int) -> None:
        self.backend.allocate(num_pages)

    def page_bytes(self) -> int:
        return self.backend.page_bytes()

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        self.backend.copy_pages(sources, targets)

    def implementations(self) -> dict[str, str]:
        return {"attention": self.backend.name, **self.operators}
