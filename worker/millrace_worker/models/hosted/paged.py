"""A model of transformers whose attention runs over our pages: it has everything that the native decoder has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from millrace_worker.attention.interface import AttentionBackend
from millrace_worker.models.hosted.layers import HookError, PagedAttention
from millrace_worker.step import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATION = "transformers"


class Body:
    """The part of a causal model below its head.

    The head, and what a family does to its scores (scales, caps), is the model's own code too: `logits` runs the whole
    model with a body that answers at once with given hidden states.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises HookError when the model does not say which part of it the body is."""
        body = model.base_model
        if body is model:
            raise HookError(f"{type(model).__name__} has no body apart from its head")
        self._model, self._compute = model, body.forward
        self._given: Tensor | None = None
        self._output: type | None = None
        body.forward = self._forward

    def _forward(self, *arguments: Any, **named: Any) -> Any:
        if self._given is None:
            return self._compute(*arguments, **named)
        hidden = self._given[None]
        return (hidden,) if self._output is None else self._output(last_hidden_state=hidden)

    def hidden(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        """[T, D], normalized, as the head takes it."""
        output = self._model.base_model(
            input_ids=token_ids_T[None], position_ids=positions_T[None], use_cache=False, return_dict=True
        )
        if not isinstance(output, tuple):
            self._output = type(output)
        return output[0][0]

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V]."""
        self._given = hidden_RD
        try:
            ids = torch.zeros(1, len(hidden_RD), dtype=torch.int64, device=hidden_RD.device)
            return self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            self._given = None


@dataclass(frozen=True, kw_only=True)
class Size:
    vocab: int
    max_positions: int


class PagedModel:
    """As `model.Model` describes it."""

    implementation = IMPLEMENTATION

    def __init__(self, body: Body, attention: PagedAttention, backend: AttentionBackend, size: Size) -> None:
        self.backend = backend
        self.vocab_size, self.max_positions, self.page_size = size.vocab, size.max_positions, backend.page_size
        self.missing: Mapping[str, str] = {}
        self.is_first_rank = True
        self._body, self._attention = body, attention
        self._operators: dict[str, str] = {}

    def plan(self, batch: Batch) -> Any:
        return self.backend.plan(batch)

    @torch.inference_mode()
    def hidden(self, token_ids_T: Tensor, positions_T: Tensor, step: Any) -> Tensor:
        self._attention.step = step
        return self._body.hidden(token_ids_T, positions_T)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor | None:
        logits = self._body.logits(hidden_RD)
        return logits.float() if self.is_first_rank else None

    def allocate_kv(self, num_pages: int) -> None:
        self.backend.allocate(num_pages)

    def page_bytes(self) -> int:
        return self.backend.page_bytes()

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        self.backend.copy_pages(sources, targets)

    def implementations(self) -> dict[str, str]:
        return {"attention": self.backend.name, **self._operators}
