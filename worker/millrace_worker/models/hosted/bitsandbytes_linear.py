"""What has to be settled in linear layers of bitsandbytes before a server can use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 127.0  # of 8 bits, on either side of zero


def settle_bitsandbytes(model: nn.Module) -> None:
    """Makes each token's result its own, and leaves out a CPU path that does not know the layer's shape."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, Linear8bitLt):
            module.__dict__["forward"] = by_token(module)
        elif isinstance(module, Linear4bit):
            block = getattr(getattr(module.weight, "quant_state", None), "blocksize", 1)
            if module.in_features % block:
                module.support_avx512bf16_for_cpu = False  # that path takes whole blocks of a row


def by_token(linear: Any) -> Callable[[Tensor], Tensor]:
    """The forward pass of a `Linear8bitLt` as it is for a token alone, whatever else is in the pass.

    LLM.int8() (Dettmers and others, 2022) computes activations above a threshold unrounded. bitsandbytes takes whole
    columns of a pass for that, so that a sequence's scores would depend on the sequences beside it.
    """
    if linear.weight.CB is not None:
        linear.init_8bit_state()
    state, bias = linear.state, linear.bias
    operators = torch.ops.bitsandbytes

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        halves = rows.half()
        large = halves.abs() >= state.threshold if state.threshold > 0 else torch.zeros_like(rows, dtype=torch.bool)
        codes, scales, _ = operators.int8_vectorwise_quant(halves.masked_fill(large, 0), 0.0)
        own_bias = None if bias is None else bias.to(x.dtype)
        out = operators.int8_scaled_mm(codes, state.CB, scales, state.SCB, bias=own_bias, dtype=x.dtype)
        columns = large.any(dim=0).nonzero().flatten()
        if len(columns):
            weight = (state.CB[:, columns] * (state.SCB[:, None] / LEVELS)).to(x.dtype)
            out = out + rows.masked_fill(~large, 0)[:, columns] @ weight.T
        return out.view(*x.shape[:-1], -1)

    return forward
