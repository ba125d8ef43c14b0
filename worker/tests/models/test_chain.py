"""All blocks in one call of the kernels give the bits that they give one by one, and only what is native is chained."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.attention.native_backend import NativeBackend, NativeStep
from millrace_worker.distributed import Group
from millrace_worker.layers import operators
from millrace_worker.layers.embedding import PackedEmbedding
from millrace_worker.layers.linear import NativeLinear
from millrace_worker.layers.norm import NativeNorm, NormWeights
from millrace_worker.layers.quantized import NativeQuantizedLinear
from millrace_worker.models.chain import chained
from millrace_worker.models.decoder import AttentionLayer, CausalLM, DecoderLayer, DecoderStep, Ends, MlpLayer
from millrace_worker.models.load import load_model
from millrace_worker.workspace import Workspace

from .checkpoints import Saved
from .packed_files import Form, rewritten
from .paged import PagedRun

# Plain blocks, biases, norms on all sides, windows on some layers, norms of heads, two rotations, or none at all, and
# one that long sequences take from another table.
CHAINED = ["llama", "qwen2, windows", "qwen3", "gemma2, window 18", "gemma3", "gpt2", "bloom", "phi3, partial, tied"]
CHAINED += ["llama, longrope"]
# All linear layers in one form; beside some that stay plain.
QUANTIZED = {
    "gptq, 8 bits": (Form("gptq", bits=8, symmetric=True), {NativeQuantizedLinear}),
    "awq, some plain": (Form("awq", kept="down_proj|o_proj"), {NativeQuantizedLinear, NativeLinear}),
}
# A mixture; a sum beside the attention; a norm of all heads as one.
NOT_CHAINED = ["mixtral", "gpt-neox, parallel", "olmo2"]


def loaded(saved: Saved, dtype: torch.dtype) -> CausalLM:
    return loaded_from(saved.folder, dtype, threads=1)


def loaded_from(folder: Path, dtype: torch.dtype, threads: int) -> CausalLM:
    kernels = cpu_kernels.find("", threads)
    return load_model(folder, dtype=dtype, device=torch.device("cpu"), group=Group(), kernels=kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CHAINED)
def test_a_chain_gives_the_bits_of_its_blocks(
    case: str, dtype: torch.dtype, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    check_bits(loaded(saved(case), dtype), sequences)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_that_is_packed_for_the_head_is_looked_up_in_the_chain(
    dtype: torch.dtype, saved: Callable[[str], Saved], sequences: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "MAX_TIED_COPY_BYTES", 0)
    model = loaded(saved("gemma2, window 18"), dtype)
    assert isinstance(model._ends.embed, PackedEmbedding)
    check_bits(model, sequences)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_linear_layers_are_chained_to_the_bit(
    name: str, dtype: torch.dtype, saved: Callable[[str], Saved], sequences: list[list[int]], tmp_path: Path
) -> None:
    form, kinds = QUANTIZED[name]
    model = loaded(rewritten(saved("llama"), tmp_path, form), dtype)
    linears = [each for layer in model._layers for each in (*layer.attn.linears, *layer.mlp.linears)]
    assert {type(each) for each in linears} == kinds
    check_bits(model, sequences)


def check_bits(model: CausalLM, sequences: list[list[int]]) -> None:
    assert model.chain is not None
    seed = random.randrange(2**32)
    at_once = PagedRun(model, seed=seed).logits(sequences)
    model.chain = None
    for logits, again in zip(at_once, PagedRun(model, seed=seed).logits(sequences), strict=True):
        assert torch.equal(logits, again)


@pytest.mark.parametrize("binding", ["", "true"])
def test_helpers_give_the_same_bits_and_torch_keeps_its_threads(
    binding: str, saved: Callable[[str], Saved], sequences: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process: helpers are for all that a process computes. None where the user binds OpenMP's threads."""
    monkeypatch.setenv("OMP_PROC_BIND", binding)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        helpers = pool.submit(helpers_of_a_chain, saved("llama").folder, sequences).result(300)
    assert helpers == (set() if binding else {"kernels-1", "kernels-2"})


def helpers_of_a_chain(folder: Path, sequences: list[list[int]]) -> set[str]:
    seed = random.randrange(2**32)
    alone = PagedRun(loaded_from(folder, torch.float32, threads=1), seed=seed).logits(sequences)
    model = loaded_from(folder, torch.float32, threads=3)
    torch.set_num_threads(3)
    shared = PagedRun(model, seed=seed).logits(sequences)
    assert torch.get_num_threads() == 3
    assert all(torch.equal(*pair) for pair in zip(alone, shared, strict=True))
    names = {file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")}
    return {name for name in names if name.startswith("kernels-")}


@pytest.mark.parametrize("case", NOT_CHAINED)
def test_where_python_is_needed_in_between_there_is_no_chain(case: str, saved: Callable[[str], Saved]) -> None:
    assert loaded(saved(case), torch.float32).chain is None


def test_a_chain_of_too_little_is_refused(saved: Callable[[str], Saved]) -> None:
    from millrace_kernels import Chain

    machine = cpu_kernels.find("", 1)
    assert machine is not None
    chain = Chain(machine)
    model = loaded(saved("llama"), torch.float32)
    attention = model.backend.layers[0].kernel  # pyright: ignore[reportAttributeAccessIssue]
    chain.attend(attention, 1, (0, 16), 3, 1, 2)
    chain.pick(0, "float32", 32, 1.0, 0)
    for slots, tables in (([0] * 3, [(0, 0, 0)]), ([0] * 4, []), ([0] * 4, [(0, 0, 0)])):
        with pytest.raises(ValueError, match="4 slots, 2 plans and 1 tables"):
            chain.run(1, slots, [], tables)


def test_a_row_that_a_table_has_not_is_refused() -> None:
    from millrace_kernels import Chain

    machine = cpu_kernels.find("", 1)
    assert machine is not None
    chain = Chain(machine)
    chain.pick(0, "float32", 16, 1.0, 0)
    table, out = torch.rand(3, 16), torch.full((2, 16), torch.nan)
    for numbers in ([0, 3], [-1, 0]):
        wanted = torch.tensor(numbers)
        with pytest.raises(ValueError, match=r"row (3|-1) of a table of 3"):
            chain.run(2, [out.data_ptr()], [], [(table.data_ptr(), 3, wanted.data_ptr())])
    assert out.isnan().all()


def first_norm(layers: list[DecoderLayer], width: int) -> None:
    """The first norm, and what takes it, made for a stream of `width`."""
    attn, out = layers[0].attn, Workspace(width, torch.float32)
    assert isinstance(attn, AttentionLayer)
    layers[0] = replace(layers[0], attn_norm=norm(width, out), attn=replace(attn, qkv=linear(attn.qkv, width)))


def norm_in_between(layers: list[DecoderLayer], width: int) -> None:
    """What the first attention adds, and the norm of the sum, made for a stream of `width`."""
    attn, mlp = layers[0].attn, layers[0].mlp
    assert isinstance(attn, AttentionLayer)
    assert isinstance(mlp, MlpLayer)
    assert isinstance(attn.out, NativeLinear)
    attn = replace(attn, out=linear(attn.out, attn.out.num_inputs, width))
    after = norm(width, Workspace(width, torch.float32))
    layers[0] = replace(layers[0], attn=attn, mlp_norm=after, mlp=MlpLayer(linear(mlp.up, width), mlp.down))


def last_update(layers: list[DecoderLayer], width: int) -> None:
    """What the last block adds to the stream, of `width`."""
    mlp = layers[-1].mlp
    assert isinstance(mlp, MlpLayer)
    assert isinstance(mlp.down, NativeLinear)
    layers[-1] = replace(layers[-1], mlp=MlpLayer(mlp.up, linear(mlp.down, mlp.down.num_inputs, width)))


def room_of_a_norm(layers: list[DecoderLayer], width: int) -> None:
    """The first norm as it is, writing into rows of `width`, which is what the linear layer after it takes."""
    attn, before = layers[0].attn, layers[0].attn_norm
    assert isinstance(attn, AttentionLayer)
    assert isinstance(before, NativeNorm)
    after = norm(before.width, Workspace(width, torch.float32))
    layers[0] = replace(layers[0], attn_norm=after, attn=replace(attn, qkv=linear(attn.qkv, width)))


def norm(width: int, out: Workspace) -> NativeNorm:
    machine = cpu_kernels.find("", 1)
    assert machine is not None
    return NativeNorm(machine, NormWeights(True, 1e-5, torch.ones(width)), out)


def linear(like: object, num_inputs: int, num_outputs: int | None = None) -> NativeLinear:
    """As wide as `like`, or as told, into memory like that of `like`."""
    machine = cpu_kernels.find("", 1)
    assert machine is not None
    assert isinstance(like, NativeLinear)
    assert isinstance(like.out, Workspace)
    out = like.out if num_outputs is None else Workspace(num_outputs, like.out.dtype)
    return NativeLinear(machine, torch.zeros(out.width, num_inputs), None, out)


@pytest.mark.parametrize("misfit", [first_norm, norm_in_between, last_update, room_of_a_norm])
def test_blocks_of_different_widths_are_not_chained(
    misfit: Callable[[list[DecoderLayer], int], None], saved: Callable[[str], Saved]
) -> None:
    model = loaded(saved("llama"), torch.float32)
    layers = [layer for layer in model._layers if isinstance(layer, DecoderLayer)]
    width = model.spec.hidden
    misfit(layers, width)
    assert chained(layers, model._ends, model.backend) is not None
    for other in (width // 2, 2 * width):
        misfit(layers, other)
        assert chained(layers, model._ends, model.backend) is None


def test_some_blocks_of_a_backend_are_not_chained(saved: Callable[[str], Saved]) -> None:
    """Workspaces' slots are counted from those of all layers' pages."""
    model = loaded(saved("llama"), torch.float32)
    assert chained(model._layers, model._ends, model.backend) is not None
    assert chained(model._layers[:-1], model._ends, model.backend) is None


def test_a_chain_takes_the_pages_of_its_layers_and_no_other(saved: Callable[[str], Saved]) -> None:
    model = loaded(saved("llama"), torch.float32)
    assert model.chain is not None
    backend, count = model.backend, len(model._layers)
    assert isinstance(backend, NativeBackend)
    token, step = torch.zeros(1, dtype=torch.int64), DecoderStep(NativeStep(1, {}), [])
    for given in ([], [1] * (count - 1), [1] * (count + 1)):
        backend.addresses = given
        with pytest.raises(ValueError, match=f"a chain of {count} layers got the pages of {len(given)}"):
            model.chain.run(token, token, step)


def test_tensors_of_another_form_are_refused(saved: Callable[[str], Saved]) -> None:
    model = loaded(saved("llama"), torch.float32)
    assert model.chain is not None
    model.allocate_kv(1)
    ids = torch.zeros(2, dtype=torch.int64)
    turns = torch.zeros(4, 2 * model._ends.rotaries[0].width)
    for wrong in (ids.int(), ids[:1], torch.zeros(4, dtype=torch.int64)[::2]):
        with pytest.raises(ValueError, match="rows are named by"):
            run_with(model, ids, turns, wrong)
        if len(wrong) == len(ids):
            with pytest.raises(ValueError, match="rows are named by"):
                run_with(model, wrong, turns, ids)
    for table in (turns.double(), turns[:, 1:], turns.t().contiguous().t()):
        with pytest.raises(ValueError, match="rotations are"):
            run_with(model, ids, table, ids)


def run_with(model: CausalLM, ids: torch.Tensor, turns: torch.Tensor, wanted: torch.Tensor) -> None:
    """A step whose rotations are the `wanted` rows of `turns`."""
    assert model.chain is not None
    model.chain.run(ids, ids, DecoderStep(NativeStep(len(ids), {}), [Turns(turns, wanted)]))


@dataclass(frozen=True)
class Turns:
    kept: torch.Tensor
    wanted: torch.Tensor

    def table(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kept, self.wanted

    def rows(self, positions_T: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def test_a_stream_of_another_form_is_refused(saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch makes it: of learned positions, for one."""
    model = loaded(saved("gpt2"), torch.float32)
    assert model.chain is not None
    model.allocate_kv(1)
    width, ids = model.spec.hidden, torch.zeros(1, dtype=torch.int64)
    for x in (torch.zeros(1, width + 16), torch.zeros(1, width).double(), torch.zeros(width, 2).t()):
        monkeypatch.setattr(Ends, "first", lambda *_, x=x: x)
        with pytest.raises(ValueError, match=f"a stream of \\[T, {width}\\] float32, contiguous"):
            model.chain.run(ids, ids, DecoderStep(NativeStep(1, {}), []))
