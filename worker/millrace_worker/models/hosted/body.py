"""A causal model of transformers in two parts: what computes hidden states, and the head that makes scores of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What models call the state that a call leaves for the next one.
CACHES = ("past_key_values", "cache_params", "state")


class Body(Protocol):
    """`cache` is what the last call for this sequence returned; None at its first token."""

    def hidden(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        """[T, D] of tokens that need no cache, because attention is ours."""
        ...

    def cached(self, token_ids_T: Tensor, positions_T: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """[T, D] of one sequence's next tokens, and its cache after them."""
        ...

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V]."""
        ...


def body_of(model: PreTrainedModel) -> Body:
    return WholeModel(model) if model.base_model is model else HeadedModel(model)


class _Callable:
    """A module of transformers, called with those arguments that it takes."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        parameters = inspect.signature(forward).parameters
        anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        self._module = module
        self._positions = "position_ids" in parameters or anything
        self._returns = "return_dict" in parameters or anything
        self._cache = next((name for name in CACHES if name in parameters), None)

    def arguments(self, token_ids_T: Tensor, positions_T: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {"input_ids": token_ids_T[None]}
        if self._positions:
            given["position_ids"] = positions_T[None]
        if self._returns:
            given["return_dict"] = True
        return given

    def plain(self, token_ids_T: Tensor, positions_T: Tensor) -> Any:
        return self._module(**self.arguments(token_ids_T, positions_T), use_cache=False)

    def cached(self, token_ids_T: Tensor, positions_T: Tensor, cache: Any) -> tuple[Any, Any]:
        if self._cache is None:
            raise ValueError(f"{type(self._module).__name__} keeps no cache: it takes none of {', '.join(CACHES)}")
        given = self.arguments(token_ids_T, positions_T) | {self._cache: cache}
        output = self._module(**given, use_cache=True)
        cache = getattr(output, self._cache, None)
        if cache is None:
            raise ValueError(f"{type(self._module).__name__} returns no {self._cache}")
        return output, cache


class HeadedModel:
    """A body with a head on it.

    The head, and what a family does to its scores (scales, caps), is the model's own code too: `logits` runs the whole
    model while the body answers at once with given hidden states.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        # Where the model wraps a decoder (OPT, BART), the head calls that one past the wrapper.
        body = getattr(model.base_model, "decoder", None)
        body = body if isinstance(body, nn.Module) else model.base_model
        self._model, self._compute = model, body.forward
        self._call = _Callable(body, body.forward)
        self._given: Tensor | None = None
        self._output: type | None = None
        body.forward = self._forward

    def _forward(self, *arguments: Any, **named: Any) -> Any:
        if self._given is None:
            return self._compute(*arguments, **named)
        hidden = self._given[None]
        return (hidden,) if self._output is None else self._output(last_hidden_state=hidden)

    def _hidden_of(self, output: Any) -> Tensor:
        if not isinstance(output, tuple):
            self._output = type(output)
        return output[0][0]

    def hidden(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        return self._hidden_of(self._call.plain(token_ids_T, positions_T))

    def cached(self, token_ids_T: Tensor, positions_T: Tensor, cache: Any) -> tuple[Tensor, Any]:
        output, cache = self._call.cached(token_ids_T, positions_T, cache)
        return self._hidden_of(output), cache

    def logits(self, hidden_RD: Tensor) -> Tensor:
        self._given = hidden_RD
        try:
            ids = torch.zeros(1, len(hidden_RD), dtype=torch.int64, device=hidden_RD.device)
            return self._model(input_ids=ids, use_cache=False).logits[0]
        finally:
            self._given = None


class WholeModel:
    """A model that does not say which part of it is the body: its scores stand for hidden states."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._call = _Callable(model, model.forward)

    def hidden(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        return self._call.plain(token_ids_T, positions_T).logits[0]

    def cached(self, token_ids_T: Tensor, positions_T: Tensor, cache: Any) -> tuple[Tensor, Any]:
        output, cache = self._call.cached(token_ids_T, positions_T, cache)
        return output.logits[0], cache

    def logits(self, hidden_RD: Tensor) -> Tensor:
        return hidden_RD
