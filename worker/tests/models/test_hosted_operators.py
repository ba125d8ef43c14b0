"""Operators in the place of a hosted model's modules: only where they compute the same."""

from __future__ import annotations

import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.models.hosted.operators import Replacer
from torch import nn

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_norm_without_bias_stays_one(dtype: torch.dtype) -> None:
    """Wide and around zero, its values are nearly those of an RMSNorm."""
    norm = nn.LayerNorm(4096, bias=False).to(dtype)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = (torch.randn(2, 3, 4096) + 1.0).to(dtype)
    expected = norm(x)
    Replacer(cpu_kernels.find("", 1), dtype)._replace_norm(norm)
    torch.testing.assert_close(norm(x), expected, atol=0.03, rtol=0.02)


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_layer_keeps_its_values(dtype: torch.dtype, kernels: str) -> None:
    linear = nn.Linear(64, 48).to(dtype)
    x = torch.randn(2, 3, 64).to(dtype)
    expected = linear(x)
    assert Replacer(cpu_kernels.find(kernels, 1), dtype)._replace_linear(linear, set())
    torch.testing.assert_close(linear(x), expected, atol=0.02, rtol=0.02)
