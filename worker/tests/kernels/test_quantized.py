"""Linear layers over weights of 8 and 4 bits, on every instruction-set level, against double precision."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from millrace_kernels import Machine
from millrace_kernels import QuantizedLinear as Kernel
from millrace_worker.cpu_kernels import torch_openmp
from millrace_worker.layers.linear import ACTIVATIONS, Epilogue
from millrace_worker.layers.quantized import (
    DequantizedLinear,
    NativeQuantizedLinear,
    QuantizedWeight,
    greatest,
    packed_nibbles,
    quantize,
)
from millrace_worker.workspace import FreshRows
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]
FORMS = ["int8", "int4", "int4 with zeros"]
# What a kernel must not read: it would make every sum NaN.
POISON = float("nan")


@pytest.fixture(params=Machine.levels())
def level(request: pytest.FixtureRequest) -> str:
    return request.param


def numbers(weight: QuantizedWeight) -> Tensor:
    """float64 [out, inputs], one code after the other as the form is described."""
    groups = weight.scales.shape[1]
    values = torch.zeros(weight.outputs, weight.inputs, dtype=torch.float64)
    for group in range(groups):
        first, end = group * weight.group, min(weight.inputs, (group + 1) * weight.group)
        if weight.bits == 8:
            codes = weight.codes[:, first:end].double()
        else:
            at = torch.arange(first, end)
            codes = ((weight.codes[:, at // 2].long() >> (4 * (at % 2))) & 15).double()
            codes -= 8 if weight.zeros is None else weight.zeros[:, group : group + 1].double()
        values[:, first:end] = codes * weight.scales[:, group : group + 1].double()
    return values


def random_weight(form: str, outputs: int, inputs: int, group: int) -> QuantizedWeight:
    """Every code occurs; what lies around the tensors is no part of them."""
    groups = (outputs, -(-inputs // group))
    scales = (torch.rand(groups) + 0.5).mul_(random.choice([1.0, 1e-3])).to(random.choice(DTYPES))
    if form == "int8":
        codes = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
        return QuantizedWeight(codes, scales / 64, inputs, group)
    codes = packed_nibbles(torch.randint(0, 16, (outputs, inputs)))
    zeros = torch.randint(0, 17, groups, dtype=torch.uint8) if form == "int4 with zeros" else None
    # Some of the scales of a form without zeros are negative, as in GGUF's Q4_0.
    return QuantizedWeight(codes, scales / 4 * (torch.rand(groups) - 0.3).sign(), inputs, group, zeros)


def poisoned(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Random rows [rows, columns] inside a larger tensor of NaN."""
    around = torch.full((rows * columns + 256,), POISON).to(dtype)
    return around[128 : 128 + rows * columns].view(rows, columns).copy_(torch.randn(rows, columns))


def expected(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, epilogue: Epilogue | None) -> Tensor:
    y = F.linear(x.double(), numbers(weight), None if bias is None else bias.double())
    if epilogue is None:
        return y
    activate = ACTIVATIONS[str(epilogue.activation)]
    if not epilogue.gated:
        return activate(y)
    gate, up = y.chunk(2, dim=-1)
    return activate(gate) * up


def check(found: Tensor, wanted: Tensor, inputs: int) -> None:
    """Sums of `inputs` products of about 1 in float32, rounded once more when the result is bfloat16."""
    size = float(wanted.abs().max()) + 1.0
    rounding = 0.0 if found.dtype is torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), wanted, atol=size * (2e-6 + 2**-23 * inputs), rtol=rounding + 1e-6)


def random_case() -> tuple[int, int, int, int]:
    """Rows, inputs, outputs, group: around the sizes of tiles, blocks, strips, cells and stretches, and beyond."""
    near = [1, 2, 3, 5, 6, 7, 11, 12, 13, 16, 17, 24, 25, 48, 96, 97]
    inputs = random.choice([1, 3, 8, 34, 63, 64, 130, 256, 500, 1023, 2048, 2052, 2600])
    group = random.choice([8, 32, 64, 128, inputs, 4096])
    return random.choice(near), inputs, random.choice([*near, 31, 33, 64, 66, 128, 200]), group


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_double_precision_at_random_shapes(machine: Machine, dtype: torch.dtype, form: str) -> None:
    for _ in range(12):
        rows, inputs, outputs, group = random_case()
        out_dtype = random.choice(DTYPES)
        x, weight = poisoned(rows, inputs, dtype), random_weight(form, outputs, inputs, group)
        bias = torch.randn(outputs) if random.random() < 0.5 else None
        around = torch.full((rows * outputs + 128,), POISON).to(out_dtype)
        inside = around[64 : 64 + rows * outputs]
        out = FreshRows(outputs, out_dtype)
        layer = NativeQuantizedLinear(machine, weight, bias, out, dtype=dtype)
        layer.kernel.apply(x.data_ptr(), rows, inside.data_ptr())
        check(inside.view(rows, outputs), expected(x, weight, bias, None), inputs)
        beyond = torch.cat((around[:64], around[64 + rows * outputs :]))
        assert bool(beyond.isnan().all()), "written outside of the result"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_epilogues_equal_double_precision(level: str, form: str, activation: str, gated: bool) -> None:
    epilogue, machine = Epilogue(activation, gated), Machine(level, 1, 0, 0)
    for rows, inputs, outputs in [(1, 64, 32), (7, 30, 34), (20, 96, 2 * 75)]:
        dtype = random.choice(DTYPES)
        x, weight, bias = poisoned(rows, inputs, dtype), random_weight(form, outputs, inputs, 32), torch.randn(outputs)
        weight = replace(weight, scales=weight.scales / 8)  # activations of what is near 0 say more
        out = FreshRows(outputs // 2 if gated else outputs, torch.float32)
        layer = NativeQuantizedLinear(machine, weight, bias, out, epilogue, dtype=dtype)
        check(layer(x), expected(x, weight, bias, epilogue), inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_neighbours_nor_on_threads(level: str, dtype: torch.dtype, form: str) -> None:
    """Few rows read codes, many read what has been decoded, a group in several stretches: to the same bits."""
    x = torch.randn(70, 3000).to(dtype)
    weight = random_weight(form, 200, 3000, random.choice([64, 3000]))
    out = FreshRows(200, torch.float32)
    alone = NativeQuantizedLinear(Machine(level, 1, 0, 0), weight, None, out, dtype=dtype)
    shared = NativeQuantizedLinear(Machine(level, 2, *torch_openmp()), weight, None, out, dtype=dtype)
    together = shared(x)
    for first, end in [(0, 1), (1, 3), (3, 10), (10, 26), (26, 70)]:
        assert torch.equal(together[first:end], alone(x[first:end]))


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_kept_once_and_small(form: str) -> None:
    """Scales of float32 for groups of 128 add a quarter of a bit, zeros a sixteenth."""
    weight = random_weight(form, 256, 1024, 128)
    weight = replace(weight, scales=weight.scales.float())
    layer = NativeQuantizedLinear(
        Machine(None, 1, 0, 0), weight, None, FreshRows(256, torch.float32), dtype=torch.float32
    )
    bits = weight.bits + 0.25 + (0.0625 if weight.zeros is not None else 0)
    assert layer.num_bytes == 256 * 1024 * bits / 8 + 4 * 256
    wanted = layer(torch.ones(1, 1024))
    for tensor in (weight.codes, weight.scales, weight.zeros):
        if tensor is not None:
            tensor.zero_()
    assert torch.equal(layer(torch.ones(1, 1024)), wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_computes_the_same(form: str, dtype: torch.dtype) -> None:
    weight, bias, x = random_weight(form, 50, 100, 32), torch.randn(50), torch.randn(9, 100).to(dtype)
    torch.testing.assert_close(weight.dequantized().double(), numbers(weight), atol=0, rtol=1e-6)
    epilogue = Epilogue("silu", True)
    found = DequantizedLinear(weight, bias, torch.float32, epilogue)(x)
    check(found, expected(x, weight, bias, epilogue), 100)


def test_quantizing_rounds_to_the_nearest_of_255_steps() -> None:
    weight = torch.randn(40, 300) * torch.rand(40, 1)
    weight[7] = 0.0
    made = quantize(weight, greatest(weight))
    steps = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((made.dequantized() - weight).abs() <= steps * 0.5001).all())
    assert int(made.codes.abs().max()) == 127
    assert not made.dequantized()[7].any()


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_ranks_are_parts_of_the_weight(form: str) -> None:
    weight = random_weight(form, 24, 200, 32)
    whole = weight.dequantized()
    assert torch.equal(weight.rows(range(5, 20)).dequantized(), whole[5:20])
    for part in (range(64), range(64, 200), range(32, 96)):
        assert torch.equal(weight.columns(part).dequantized(), whole[:, part.start : part.stop])
    with pytest.raises(ValueError, match="inputs 0 to 100 of 200 do not end where a group of 32 ends"):
        weight.columns(range(100))
    alone = random_weight(form, 24, 200, 200)
    assert torch.equal(alone.columns(range(100, 200)).dequantized(), alone.dequantized()[:, 100:])


def test_what_has_no_packed_form_is_refused() -> None:
    machine = Machine(None, 1, 0, 0)
    weight = random_weight("int4", 4, 64, 12)
    assert not NativeQuantizedLinear.supports(weight, torch.float32)
    assert not NativeQuantizedLinear.supports(replace(weight, group=64, scales=weight.scales[:, :1]), torch.float16)
    with pytest.raises(ValueError, match="4 outputs by 64 inputs of 4 bits in groups of 12"):
        NativeQuantizedLinear(machine, weight, None, FreshRows(4, torch.float32), dtype=torch.float32)
    with pytest.raises(ValueError, match="8 or 4 bits, not 3"):
        Kernel(machine, (0, 0, 0), (4, 8, 8, 3), ("float32", "float32", "float32"), None, (None, False))
    layer = NativeQuantizedLinear(
        machine, random_weight("int8", 4, 8, 8), None, FreshRows(4, torch.float32), dtype=torch.float32
    )
    for wrong in (torch.randn(3, 8).bfloat16(), torch.randn(3, 7), torch.randn(8, 3).t()):
        with pytest.raises(ValueError, match="a linear layer of"):
            layer(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"codes": torch.zeros(4, 8)}, "int8 or uint8"),
        ({"inputs": 9}, "9 codes of 8 bits are 9 bytes, not 8"),
        ({"group": 0}, "groups of 0"),
        ({"scales": torch.ones(4, 2)}, r"scales are \(4, 1\)"),
        ({"scales": torch.ones(4, 1).half()}, "float16"),
        ({"zeros": torch.zeros(4, 1, dtype=torch.uint8)}, "of 4-bit codes"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(wrong: dict[str, object], message: str) -> None:
    right = QuantizedWeight(torch.zeros(4, 8, dtype=torch.int8), torch.ones(4, 1), 8, 8)
    with pytest.raises(ValueError, match=message):
        replace(right, **wrong)
