"""Where a model's own code meets our attention: one function, registered with transformers under two names.

The function keeps no state. It finds what to do in the attention module that calls it, so that several models can
live in one process and no model has to hand extra arguments down through its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Under the first name nobody builds a mask: what a token sees follows from its position. Under the second one, layers
# get a mask that remembers its rule, so that a trial forward pass can learn it.
PAGED, RECORDING = "millrace", "millrace_recording"
ATTRIBUTE = "millrace_attention"
RULE = "millrace_rule"

# (batch, head, positions of queries, positions of keys) -> which see each other, elementwise.
MaskRule = Callable[[int, int, Tensor, Tensor], Tensor]


class Attention(Protocol):
    def __call__(
        self, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """Attention of one layer: q [1, N, T, H], k and v [1, K, T, H], rotated where the model rotates; [1, T, N, H].

        `options` are the keyword arguments of transformers' attention interface, `scaling` among them.
        """
        ...


def register() -> None:
    """Makes both names attention implementations of transformers; again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    for name, mask in ((PAGED, _no_mask), (RECORDING, _mask_with_rule)):
        AttentionInterface.register(name, _attend)
        AttentionMaskInterface.register(name, mask)


def install(model: nn.Module, attention: Attention) -> None:
    """Every module of `model` that computes attention under either name calls `attention` from now on."""
    for module in model.modules():
        module.__dict__[ATTRIBUTE] = attention


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    return module.__dict__[ATTRIBUTE](module, (query, key, value), attention_mask, options), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _mask_with_rule(*_: Any, q_length: int, kv_length: int, mask_function: MaskRule, **__: Any) -> Tensor:
    """bool [1, 1, Q, K]."""
    positions = torch.arange(max(int(q_length), int(kv_length)))
    queries, keys = positions[: int(q_length), None], positions[None, : int(kv_length)]
    mask = mask_function(0, 0, queries, keys).expand(1, 1, int(q_length), int(kv_length)).clone()
    setattr(mask, RULE, mask_function)
    return mask
