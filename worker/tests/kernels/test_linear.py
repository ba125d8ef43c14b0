"""Native linear layers against double precision, on every instruction-set level of this CPU."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from millrace_kernels import Linear as Kernel
from millrace_kernels import Machine
from millrace_worker.cpu_kernels import torch_openmp
from millrace_worker.layers.linear import ACTIVATIONS, ClampedGlu, Epilogue, NativeLinear, num_columns
from millrace_worker.workspace import FreshRows, Workspace
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]
# What a kernel must not read: it would make every sum NaN.
POISON = float("nan")


@pytest.fixture(params=Machine.levels())
def level(request: pytest.FixtureRequest) -> str:
    return request.param


CLAMPED = ClampedGlu(alpha=1.702, limit=1.5)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def poisoned(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Random rows [rows, columns] inside a larger tensor of NaN."""
    around = torch.full((rows * columns + 256,), POISON).to(dtype)
    inside = around[128 : 128 + rows * columns].view(rows, columns)
    return inside.copy_(torch.randn(rows, columns))


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue | None) -> Tensor:
    y = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if epilogue is None:
        return y
    if isinstance(epilogue.activation, ClampedGlu):
        gate, up = y.chunk(2, dim=-1)
        gate, limit = gate.clamp(max=epilogue.activation.limit), epilogue.activation.limit
        return gate * torch.sigmoid(epilogue.activation.alpha * gate) * (up.clamp(-limit, limit) + 1)
    activate = ACTIVATIONS[epilogue.activation]
    if not epilogue.gated:
        return activate(y)
    gate, up = y.chunk(2, dim=-1)
    return activate(gate) * up


def check(found: Tensor, wanted: Tensor, inputs: int) -> None:
    """Sums of `inputs` products of about 1 in float32, rounded once more when the result is bfloat16."""
    size = float(wanted.abs().max()) + 1.0
    rounding = 0.0 if found.dtype is torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), wanted, atol=size * (1e-6 + 2**-24 * inputs), rtol=rounding + 1e-6)


def random_case(dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows, inputs, outputs: around the sizes of tiles, blocks and strips, and beyond."""
    near = [1, 2, 3, 5, 6, 7, 11, 12, 13, 16, 17, 24, 25, 48, 95, 96, 97, 130]
    inputs = random.choice([2, 6, 8, 34, 62, 64, 130, 500, 1022, 2046, 2052, 4100])
    if dtype is torch.float32 and random.random() < 0.3:
        inputs -= 1
    return random.choice(near), inputs, random.choice([*near, 31, 32, 33, 63, 64, 65, 66, 128, 200, 334])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_equals_double_precision_at_random_shapes(machine: Machine, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    for _ in range(25):
        rows, inputs, outputs = random_case(dtype)
        x, weight = poisoned(rows, inputs, dtype), poisoned(outputs, inputs, dtype)
        bias = torch.randn(outputs) if random.random() < 0.5 else None
        kernel = Kernel(
            machine,
            weight.data_ptr(),
            (outputs, inputs),
            (name(dtype), name(out_dtype)),
            None if bias is None else bias.tolist(),
            (None, False),
        )
        around = torch.full((rows * outputs + 128,), POISON).to(out_dtype)
        found = around[64 : 64 + rows * outputs]
        kernel.apply(x.data_ptr(), rows, found.data_ptr())
        check(found.view(rows, outputs), expected(x, weight, bias, None), inputs)
        beyond = torch.cat((around[:64], around[64 + rows * outputs :]))
        assert bool(beyond.isnan().all()), "written outside of the result"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "epilogue",
    [Epilogue(name, gated) for name in ACTIVATIONS for gated in (False, True)] + [Epilogue(CLAMPED, True)],
    ids=str,
)
def test_epilogues_equal_double_precision(machine: Machine, dtype: torch.dtype, epilogue: Epilogue) -> None:
    for rows, inputs, outputs in [(1, 64, 32), (7, 30, 34), (20, 96, 2 * 75), (3, 256, 2 * 688)]:
        x, weight, bias = poisoned(rows, inputs, dtype), poisoned(outputs, inputs, dtype), torch.randn(outputs)
        out = FreshRows(num_columns(weight, epilogue), dtype)
        layer = NativeLinear(machine, weight, bias, out, epilogue)
        check(layer(x), expected(x, weight, bias, epilogue), inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_hold_at_the_ends_of_their_range(level: str, activation: str) -> None:
    machine = Machine(level, 1, 0, 0)
    x = torch.tensor(
        [[0.0, -0.0, 1e-20, -1e-20, 0.5, -0.5, 5.0, -5.0, 12.0, -12.0, 90.0, -90.0, 1e4, -1e4, 1e30, -1e30]]
    )
    layer = NativeLinear(machine, torch.eye(16), None, FreshRows(16, torch.float32), Epilogue(activation, False))
    torch.testing.assert_close(layer(x), ACTIVATIONS[activation](x.double()).float(), atol=4e-7, rtol=2e-6)
    x[0, 3] = POISON
    assert bool(layer(x).isnan().all()), "a product with NaN is NaN, and so is its activation"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_neighbours_nor_on_threads(level: str, dtype: torch.dtype) -> None:
    weight, x = torch.randn(200, 2300).to(dtype), torch.randn(70, 2300).to(dtype)
    alone = NativeLinear(Machine(level, 1, 0, 0), weight, None, FreshRows(200, torch.float32))
    shared = NativeLinear(Machine(level, 2, *torch_openmp()), weight, None, FreshRows(200, torch.float32))
    together = shared(x)
    for first, end in [(0, 1), (1, 3), (3, 10), (10, 26), (26, 70)]:
        assert torch.equal(together[first:end], alone(x[first:end]))


def test_bfloat16_products_are_summed_in_float32(level: str) -> None:
    """Each product of bfloat16 is exact in float32: only the sum is rounded."""
    x, weight = torch.randn(3, 4096).bfloat16(), torch.randn(32, 4096).bfloat16()
    layer = NativeLinear(Machine(level, 1, 0, 0), weight, None, FreshRows(32, torch.float32))
    error = (layer(x).double() - F.linear(x.double(), weight.double())).abs().max()
    assert error < 4096 * 2**-24 * 4 * 16


def test_no_rows_are_no_work(machine: Machine) -> None:
    layer = NativeLinear(machine, torch.randn(32, 64), None, FreshRows(32, torch.float32))
    assert layer(torch.empty(0, 64)).shape == (0, 32)


def test_the_weight_may_go_and_the_result_lies_in_the_workspace(machine: Machine) -> None:
    weight, x = torch.randn(48, 64), torch.randn(5, 64)
    wanted = F.linear(x, weight)
    workspace = Workspace(48, torch.float32)
    layer = NativeLinear(machine, weight, None, workspace)
    weight.fill_(POISON)
    found = layer(x)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    assert found.data_ptr() == workspace.address
    assert layer(x[:2]).data_ptr() == workspace.address


def test_a_transposed_weight_is_packed_by_its_values(level: str) -> None:
    weight, x = torch.randn(64, 48).t(), torch.randn(5, 64)
    layer = NativeLinear(Machine(level, 1, 0, 0), weight, None, FreshRows(48, torch.float32))
    torch.testing.assert_close(layer(x), F.linear(x, weight), atol=1e-4, rtol=1e-5)


def test_what_has_no_packed_form_is_refused() -> None:
    machine = Machine(None, 1, 0, 0)
    odd = torch.randn(4, 7).bfloat16()
    assert not NativeLinear.supports(odd)
    assert NativeLinear.supports(odd.float())
    assert not NativeLinear.supports(torch.randn(5, 8), Epilogue("silu", True))
    assert not NativeLinear.supports(torch.randn(4, 8).half())
    with pytest.raises(ValueError, match="4 outputs by 7 inputs"):
        NativeLinear(machine, odd, None, FreshRows(4, torch.bfloat16))
    with pytest.raises(ValueError, match="there is no activation tanh"):
        NativeLinear(machine, odd.float(), None, FreshRows(4, torch.float32), Epilogue("tanh", False))
    with pytest.raises(ValueError, match="as many values"):
        NativeLinear(machine, odd.float(), torch.zeros(3), FreshRows(4, torch.float32))


def test_other_inputs_than_the_layer_takes_are_refused() -> None:
    layer = NativeLinear(Machine(None, 1, 0, 0), torch.randn(4, 8), None, FreshRows(4, torch.float32))
    for wrong in (torch.randn(3, 8).bfloat16(), torch.randn(3, 7), torch.randn(8, 3).t()):
        with pytest.raises(ValueError, match="a linear layer of"):
            layer(wrong)
