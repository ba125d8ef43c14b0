"""Native norms against double precision: random shapes, both dtypes, outputs and padding poisoned."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from millrace_kernels import Machine, Norm
from millrace_worker.layers.norm import NativeNorm, NormWeights
from millrace_worker.workspace import Role, Workspaces

DTYPES = [torch.float32, torch.bfloat16]
# One thread's work, and enough for several (the kernel wakes them beyond 48 Ki values).
ROWS = [1, 3, 17, 700]


def weights(width: int, *, rms: bool, bias: bool = False) -> NormWeights:
    return NormWeights(rms, 1e-5, torch.randn(width), torch.randn(width) if bias else None)


def expected(x: torch.Tensor, of: NormWeights) -> torch.Tensor:
    """In double precision, by torch's own formulas."""
    x, weight, size = x.double(), of.weight.double(), (len(of.weight),)
    if of.rms:
        return F.rms_norm(x, size, weight, of.eps)
    return F.layer_norm(x, size, weight, None if of.bias is None else of.bias.double(), of.eps)


def near(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Half a unit in the last place of the result's dtype, and float32's own arithmetic."""
    step = 2.0**-8 if found.dtype is torch.bfloat16 else 2.0**-21
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["rms", "layer", "layer with bias"])
@pytest.mark.parametrize("rows", ROWS)
def test_add_and_norm_equal_double_precision(machine: Machine, rows: int, kind: str, dtype: torch.dtype) -> None:
    width = 16 * random.randint(1, 20)
    of = weights(width, rms=kind == "rms", bias=kind == "layer with bias")
    norm = NativeNorm(machine, of, Workspaces().take(Role.NORMED, width, dtype))
    residual, delta = torch.randn(rows, width) * 3, torch.randn(rows, width) + 1
    sums, kept = residual + delta, delta.clone()
    normed = norm.add(residual, delta)
    assert torch.equal(residual, sums)
    assert torch.equal(delta, kept)
    assert normed.dtype is dtype
    near(normed, expected(sums, of))
    near(norm(residual), expected(sums, of))
    assert torch.equal(residual, sums)


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("delta_dtype", DTYPES)
def test_only_the_rows_are_written(machine: Machine, delta_dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    rows, width = random.randint(1, 40), 16 * random.randint(1, 9)
    names = tuple(str(dtype).removeprefix("torch.") for dtype in (delta_dtype, out_dtype))
    of = weights(width, rms=True)
    kernel = Norm(machine, "rms", of.eps, of.weight.tolist(), None, (names[0], names[1]))
    residual = torch.full((rows + 2, width), float("nan"))
    delta, out = (
        torch.full_like(residual, float("nan"), dtype=delta_dtype),
        torch.full_like(residual, 7, dtype=out_dtype),
    )
    out[1:-1] = float("nan")
    residual[1:-1], delta[1:-1] = torch.randn(rows, width), torch.randn(rows, width)
    sums = residual[1:-1] + delta[1:-1].float()
    kernel.add_norm(residual[1:].data_ptr(), delta[1:].data_ptr(), out[1:].data_ptr(), rows)
    near(out[1:-1], expected(sums, of))
    assert torch.equal(residual[1:-1], sums)
    for edge in (0, -1):
        assert (out[edge] == 7).all()
        assert residual[edge].isnan().all()


def test_extremes(machine: Machine) -> None:
    """Zeros stay zeros; what is large or small is scaled as float32 can; a NaN stays in its row."""
    of = weights(64, rms=True)
    norm = NativeNorm(machine, of, Workspaces().take(Role.NORMED, 64, torch.float32))
    assert torch.equal(norm(torch.zeros(3, 64)), torch.zeros(3, 64))
    for size in (1e-4, 1e4, 1e15):
        x = torch.randn(5, 64) * size
        near(norm(x), expected(x, of))
    x = torch.randn(3, 64)
    x[1, 5] = float("nan")
    normed = norm(x)
    assert normed[1].isnan().all()
    near(normed[::2], expected(x[::2], of))


def test_bfloat16_is_rounded_to_nearest_even(machine: Machine) -> None:
    """With eps 0 and rows whose mean square is one, the result is the weight: what is stored is its rounding."""
    weight = torch.randn(2048)
    weight[:6] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3e38, 2.0**-120])
    norm = NativeNorm(machine, NormWeights(True, 0.0, weight), Workspaces().take(Role.NORMED, 2048, torch.bfloat16))
    assert torch.equal(norm(torch.ones(1, 2048))[0], weight.bfloat16())


def test_wrong_tensors_are_refused(machine: Machine) -> None:
    norm = NativeNorm(machine, weights(32, rms=True), Workspaces().take(Role.NORMED, 32, torch.float32))
    good = torch.zeros(4, 32)
    for bad in (torch.zeros(4, 48), torch.zeros(4, 32).bfloat16(), torch.zeros(32, 4).t(), torch.zeros(3, 32)):
        with pytest.raises(ValueError, match=r"a norm of \[4, 32\] float32"):
            norm.add(good, bad)
    with pytest.raises(ValueError, match="multiples of 16"):
        Norm(machine, "rms", 1e-5, [1.0] * 17, None, ("float32", "float32"))
    with pytest.raises(ValueError, match="float16"):
        Norm(machine, "rms", 1e-5, [1.0] * 16, None, ("float32", "float16"))
    with pytest.raises(ValueError, match="no norm batch"):
        Norm(machine, "batch", 1e-5, [1.0] * 16, None, ("float32", "float32"))
