"""Each operator against torch's own, on fresh random inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from millrace_worker.distributed import Group
from millrace_worker.layers.embedding import Embedding, Head, TableSlice
from millrace_worker.layers.linear import ACTIVATIONS, Epilogue, PackedLinear, PlainLinear, make_linear
from millrace_worker.layers.norm import LayerNorm, RmsNorm

LINEARS = [PlainLinear, PackedLinear]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(1, 64), (7, 256), (3, 6, 32)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_rms_norm_equals_torch(shape: tuple[int, ...], size: float) -> None:
    x, weight = torch.randn(shape) * size, torch.randn(shape[-1])
    expected = F.rms_norm(x, shape[-1:], weight, 1e-6)
    torch.testing.assert_close(RmsNorm(weight, 1e-6)(x), expected, atol=1e-6, rtol=1e-5)


def test_rms_norm_of_bfloat16_is_rounded_once() -> None:
    x, weight = torch.randn(5, 64).bfloat16(), torch.randn(64).bfloat16()
    exact = F.rms_norm(x.double(), (64,), weight.double(), 1e-6)
    found = RmsNorm(weight, 1e-6)(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16()) or (found.double() - exact).abs().max() <= exact.abs().max() * 2**-8


def test_rms_norm_of_zeros_is_zero() -> None:
    assert torch.equal(RmsNorm(torch.ones(8), 1e-6)(torch.zeros(2, 8)), torch.zeros(2, 8))


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_equals_its_formula(bias: bool) -> None:
    x, weight, shift = torch.randn(4, 48), torch.randn(48), torch.randn(48) if bias else None
    centred = x.double() - x.double().mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    expected = expected if shift is None else expected + shift
    torch.testing.assert_close(LayerNorm(weight, shift, 1e-5)(x), expected.float(), atol=1e-5, rtol=1e-5)


def test_add_norm_adds_the_pending_update_first() -> None:
    norm, x, delta = RmsNorm(torch.ones(8), 1e-6), torch.randn(3, 8), torch.randn(3, 8)
    expected = x + delta
    normed = norm.add(x, delta)
    assert torch.equal(x, expected)
    torch.testing.assert_close(normed, F.rms_norm(expected, (8,), None, 1e-6))
    assert torch.equal(norm.add(x, None), normed)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize("rows", [1, 2, 17, 300])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_equals_double_precision(kind: type, rows: int, bias: bool) -> None:
    x, weight, vector = torch.randn(rows, 72), torch.randn(56, 72), torch.randn(56) if bias else None
    expected = F.linear(x.double(), weight.double(), None if vector is None else vector.double())
    torch.testing.assert_close(kind(weight, vector)(x), expected.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_epilogues_equal_separate_operators(kind: type, activation: str, gated: bool, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(5, 32).to(dtype), torch.randn(48, 32).to(dtype), torch.randn(48).to(dtype)
    y = F.linear(x.double(), weight.double(), bias.double())
    activate = ACTIVATIONS[activation]
    expected = activate(y[:, :24]) * y[:, 24:] if gated else activate(y)
    tolerance = (1e-5 if dtype is torch.float32 else 2**-6) * max(10, float(expected.abs().max()))
    found = kind(weight, bias, Epilogue(activation, gated))(x)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=1e-5)


def test_small_float32_weights_and_float16_stay_plain() -> None:
    assert isinstance(make_linear(torch.randn(64, 64)), PlainLinear)
    assert isinstance(make_linear(torch.randn(1024, 512).half()), PlainLinear)
    assert isinstance(make_linear(torch.randn(1024, 512)), PackedLinear)
    assert isinstance(make_linear(torch.randn(64, 64).bfloat16()), PackedLinear)


def test_embedding_scales_as_its_dtype_rounds() -> None:
    table = torch.randn(9, 48).bfloat16()
    ids = torch.tensor([3, 8, 3])
    expected = table[ids] * torch.tensor(48**0.5).bfloat16()
    assert torch.equal(Embedding(table, TableSlice(scale=48**0.5))(ids), expected)
    assert torch.equal(Embedding(table, TableSlice())(ids), table[ids])


def test_head_answers_float32_and_caps() -> None:
    weight, h = torch.randn(20, 16), torch.randn(3, 16) * 10
    logits = Head(PlainLinear(weight, None), 18, Group(), softcap=30.0)(h)
    assert logits is not None
    torch.testing.assert_close(logits, 30.0 * torch.tanh(F.linear(h, weight)[:, :18] / 30.0))
    halved = Head(PlainLinear(weight.bfloat16(), None), 18, Group())(h.bfloat16())
    assert halved is not None
    assert halved.dtype == torch.float32
