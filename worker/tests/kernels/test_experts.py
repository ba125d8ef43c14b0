"""A mixture's experts in one native call against double precision, on every instruction-set level of this CPU."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from millrace_kernels import Experts as Kernel
from millrace_kernels import Machine
from millrace_worker.attention.interface import Heads, ScoreRule
from millrace_worker.cpu_kernels import torch_openmp
from millrace_worker.distributed import Group
from millrace_worker.layers.experts import ExpertKind, Experts, ExpertWeights, LoopedExperts, NativeExperts
from millrace_worker.layers.linear import ACTIVATIONS, ClampedGlu, Epilogue
from millrace_worker.layers.operators import NativeOperators, TorchOperators
from millrace_worker.layers.quantized import Quantizer
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]
CLAMPED = ClampedGlu(alpha=1.702, limit=1.5)
HEADS = Heads(layer=0, num_heads=1, num_kv_heads=1, head_dim=64, scale=1.0, rule=ScoreRule())


def make(machine: Machine, kind: ExpertKind, weights: list[ExpertWeights[Tensor]]) -> Experts:
    dtype = weights[0].up.dtype
    copies = [expert._replace(up=expert.up.clone(), down=expert.down.clone()) for expert in weights]
    made = NativeOperators(machine, [HEADS], dtype).experts(kind, copies)
    assert isinstance(made, NativeExperts)
    for expert in copies:  # what was packed may go
        expert.up.fill_(torch.nan)
        expert.down.fill_(torch.nan)
    return made


def random_weights(
    kind: ExpertKind, width: int, size: int, dtype: torch.dtype, bias: bool
) -> list[ExpertWeights[Tensor]]:
    def expert() -> ExpertWeights[Tensor]:
        rows = 2 * size if kind.epilogue.gated else size
        up, down = torch.randn(rows, width) * width**-0.5, torch.randn(width, size) * size**-0.5
        biases = (torch.randn(rows), torch.randn(width)) if bias else (None, None)
        return ExpertWeights(up.to(dtype), biases[0], down.to(dtype), biases[1])

    return [expert() for _ in range(kind.count)]


def finished(epilogue: Epilogue, y: Tensor) -> Tensor:
    form = epilogue.activation
    if isinstance(form, ClampedGlu):
        gate, up = y.chunk(2, dim=-1)
        gate = gate.clamp(max=form.limit)
        return gate * torch.sigmoid(form.alpha * gate) * (up.clamp(-form.limit, form.limit) + 1)
    if not epilogue.gated:
        return ACTIVATIONS[form](y)
    gate, up = y.chunk(2, dim=-1)
    return ACTIVATIONS[form](gate) * up


def expected(
    kind: ExpertKind, weights: list[ExpertWeights[Tensor]], x_TD: Tensor, chosen: tuple[Tensor, Tensor]
) -> Tensor:
    """Token by token, in double precision; what a bfloat16 expert takes and what goes up are rounded as it does."""
    dtype, out_TD = x_TD.dtype, torch.zeros(x_TD.shape, dtype=torch.float64)
    for token, (experts_K, weights_K) in enumerate(zip(*chosen, strict=True)):
        for expert, weight in zip(experts_K.tolist(), weights_K.double(), strict=True):
            up, up_bias, down, down_bias = (None if each is None else each.double() for each in weights[expert])
            assert up is not None
            assert down is not None
            x_D = (x_TD[token].double() * weight if kind.weigh_input else x_TD[token].double()).to(dtype).double()
            hidden = finished(kind.epilogue, F.linear(x_D, up, up_bias)).to(dtype).double()
            out_TD[token] += F.linear(hidden, down, down_bias) * (1.0 if kind.weigh_input else weight)
    return out_TD


def choices(tokens: int, experts: int, count: int, among: int) -> tuple[Tensor, Tensor]:
    """Distinct experts of each token, of the first `among` only, and weights."""
    chosen_TK = torch.rand(tokens, experts)[:, :among].topk(count).indices
    return chosen_TK, torch.rand(tokens, count) + 0.1


def poisoned(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    around = torch.full((rows * width + 256,), torch.nan).to(dtype)
    return around[128 : 128 + rows * width].view(rows, width).copy_(torch.randn(rows, width))


def check(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    # A value of bfloat16 that lies between two may be rounded to either.
    atol = 2e-5 if dtype is torch.float32 else 2e-2
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=atol * (1 + float(wanted.abs().max())), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_double_precision_at_random_shapes(machine: Machine, dtype: torch.dtype) -> None:
    for _ in range(6):
        count = random.choice([1, 2, 5, 16])
        form = random.choice([Epilogue("silu", True), Epilogue("gelu", True), Epilogue("relu2", False)])
        form = random.choice([form, Epilogue(CLAMPED, True)])
        kind = ExpertKind(count, form, weigh_input=random.random() < 0.3)
        width, size = 2 * random.randint(1, 70), 2 * random.randint(1, 60)
        weights = random_weights(kind, width, size, dtype, bias=random.random() < 0.5)
        layer, each = make(machine, kind, weights), random.randint(1, min(count, 4))
        for tokens in (1, random.randint(2, 20), random.randint(20, 130)):
            chosen = choices(tokens, count, each, random.randint(each, count))
            x_TD = poisoned(tokens, width, dtype)
            check(layer(x_TD, *chosen), expected(kind, weights, x_TD, chosen), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_tokens_may_choose_one_expert_and_more_than_fit_at_once(machine: Machine, dtype: torch.dtype) -> None:
    kind = ExpertKind(3, Epilogue("silu", True))
    weights = random_weights(kind, 32, 24, dtype, bias=False)
    layer, x_TD = make(machine, kind, weights), poisoned(700, 32, dtype)
    for among in (1, 3):
        chosen = choices(700, 3, 1, among)
        check(layer(x_TD, *chosen), expected(kind, weights, x_TD, chosen), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", Machine.levels())
def test_a_token_does_not_depend_on_its_neighbours_nor_on_threads(level: str, dtype: torch.dtype) -> None:
    kind = ExpertKind(8, Epilogue("silu", True))
    weights = random_weights(kind, 96, 80, dtype, bias=True)
    alone = make(Machine(level, 1, 0, 0), kind, weights)
    shared = make(Machine(level, 2, *torch_openmp()), kind, weights)
    x_TD, (chosen_TK, weights_TK) = torch.randn(300, 96).to(dtype), choices(300, 8, 2, 8)
    together = shared(x_TD, chosen_TK, weights_TK).clone()
    for first, end in [(0, 1), (1, 3), (3, 20), (20, 120), (120, 300)]:
        part = slice(first, end)
        assert torch.equal(together[part], alone(x_TD[part], chosen_TK[part], weights_TK[part]))


def test_a_token_of_nan_spoils_no_other(machine: Machine) -> None:
    kind = ExpertKind(4, Epilogue("silu", True))
    layer = make(machine, kind, random_weights(kind, 64, 32, torch.float32, bias=False))
    x_TD, chosen = torch.randn(9, 64), choices(9, 4, 2, 4)
    wanted = layer(x_TD, *chosen).clone()
    x_TD[3] = torch.nan
    found = layer(x_TD, *chosen)
    assert bool(found[3].isnan().all())
    assert torch.equal(found[[0, 1, 2, 4, 5, 6, 7, 8]], wanted[[0, 1, 2, 4, 5, 6, 7, 8]])


def test_experts_of_8_bits_run_in_the_same_call(machine: Machine) -> None:
    kind = ExpertKind(4, Epilogue("silu", True))
    weights = random_weights(kind, 64, 48, torch.bfloat16, bias=False)
    x_TD, chosen = torch.randn(21, 64).bfloat16(), choices(21, 4, 2, 3)
    native = NativeOperators(machine, [HEADS], torch.bfloat16, Quantizer(Group())).experts(kind, weights)
    plain = TorchOperators([HEADS], torch.bfloat16, torch.device("cpu"), Quantizer(Group())).experts(kind, weights)
    assert isinstance(native, NativeExperts)
    assert isinstance(plain, LoopedExperts)
    assert "int8" in native.name
    check(native(x_TD, *chosen), plain(x_TD, *chosen).double(), torch.bfloat16)


def test_no_tokens_are_no_work(machine: Machine) -> None:
    kind = ExpertKind(2, Epilogue("silu", True))
    layer = make(machine, kind, random_weights(kind, 16, 8, torch.float32, bias=False))
    assert layer(torch.empty(0, 16), torch.empty(0, 1, dtype=torch.int64), torch.empty(0, 1)).shape == (0, 16)


def test_what_the_kernel_cannot_know_is_refused() -> None:
    machine = Machine(None, 1, 0, 0)
    kind = ExpertKind(2, Epilogue("silu", True))
    layer = make(machine, kind, random_weights(kind, 16, 8, torch.float32, bias=False))
    x_TD, (chosen_TK, weights_TK) = torch.randn(3, 16), choices(3, 2, 1, 2)
    for wrong in ((x_TD.bfloat16(), chosen_TK, weights_TK), (x_TD[:2], chosen_TK, weights_TK)):
        with pytest.raises(ValueError, match="experts of"):
            layer(*wrong)
    with pytest.raises(ValueError, match="choices are int64"):
        layer(x_TD, chosen_TK.int(), weights_TK)
    with pytest.raises(ValueError, match="choices have"):
        layer(x_TD, chosen_TK, weights_TK[:2])
    with pytest.raises(ValueError, match="names expert 2"):
        layer(x_TD, chosen_TK + 2 - chosen_TK, weights_TK)
    with pytest.raises(ValueError, match="one expert at least"):
        layer(x_TD, chosen_TK[:, :0], weights_TK[:, :0])
    with pytest.raises(ValueError, match="expert 0 is not of the kind"):
        Kernel(machine, [], False)


def test_experts_without_a_packed_form_run_one_after_the_other() -> None:
    """bfloat16 needs an even number of inputs."""
    kind = ExpertKind(2, Epilogue("silu", True))
    weights = random_weights(kind, 16, 7, torch.bfloat16, bias=False)
    layer = NativeOperators(Machine(None, 1, 0, 0), [HEADS], torch.bfloat16).experts(kind, weights)
    assert isinstance(layer, LoopedExperts)
    x_TD, chosen = torch.randn(5, 16).bfloat16(), choices(5, 2, 1, 2)
    check(layer(x_TD, *chosen), expected(kind, weights, x_TD, chosen), torch.bfloat16)
