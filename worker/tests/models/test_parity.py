"""Every architecture gives the logits of transformers, whatever the chunks, the neighbours and the free pages."""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Callable

import pytest
import torch
from millrace_kernels import Machine
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.layers import operators
from millrace_worker.layers.linear import can_pack
from millrace_worker.model import paged
from millrace_worker.models.decoder import CausalLM
from millrace_worker.models.load import load_model, load_native
from transformers import AutoModelForCausalLM

from .cases import CASES, MIXTURES, NATIVE, THOROUGH, VOCAB
from .checkpoints import Saved
from .paged import PagedRun, pool, run
from .parity import Trial

CPU = torch.device("cpu")
BEST, OFF = "", cpu_kernels.OFF
BESIDES = [level for level in Machine.levels() if level != Machine.levels()[-1]]
# Which model runs on which kernels: all on the best ones and on none, some on every instruction set.
PLACES = [(case, kernels) for case in NATIVE for kernels in (BEST, OFF)]
PLACES += [(case, kernels) for case in THOROUGH for kernels in BESIDES]


def load(
    saved: Saved, dtype: torch.dtype = torch.float32, device: torch.device = CPU, *, kernels: str = BEST
) -> CausalLM:
    machine = cpu_kernels.find(kernels, 1)
    return load_model(saved.folder, dtype=dtype, device=device, group=Group(), kernels=machine)


@pytest.mark.parametrize(("case", "kernels"), PLACES)
def test_logits_equal_transformers_in_random_chunks_beside_others(
    case: str, kernels: str, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    check_parity(saved(case), sequences, kernels=kernels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", NATIVE)
def test_logits_on_a_gpu_equal_transformers(
    case: str, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    check_parity(saved(case), sequences, device=torch.device("cuda"), kernels=OFF)


def check_parity(
    reference: Saved, sequences: list[list[int]], *, device: torch.device = CPU, kernels: str = BEST
) -> None:
    seed = random.randrange(2**32)
    trial = Trial.of(reference, sequences)
    machine = cpu_kernels.find(kernels, 1)
    model = load_native(reference.folder, dtype=torch.float32, device=device, group=Group(), kernels=machine)
    found = run(model, seed=seed).logits(trial.sequences, trial.prompts)
    trial.check(found, f"{seed=}")


def test_the_wide_cases_run_packed_linears(saved: Callable[[str], Saved]) -> None:
    for case in (name for name in NATIVE if name.endswith("packed")):
        model = load_native(saved(case).folder, dtype=torch.float32, device=CPU, group=Group())
        assert "onednn" in model.implementations()["linear"]


def test_what_runs_natively_is_said(saved: Callable[[str], Saved]) -> None:
    model = load(saved("llama, packed"), torch.bfloat16)
    expected = f"native ({Machine.levels()[-1]})"
    assert set(model.implementations()) == {"attention", "linear", "norm", "embed", "logits"}
    assert {model.implementations()[name] for name in ("attention", "linear", "norm", "logits")} == {expected}
    assert not any("native" in name for name in load(saved("llama, packed"), kernels=OFF).implementations().values())


HALVED = ["llama, packed", "gemma2, window 18", "gpt2", "falcon, RW style", "qwen3", "olmo2", "opt, 350m style"]


def root_mean_square(x: torch.Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", HALVED)
def test_half_precision_stays_near_float32(
    case: str, dtype: torch.dtype, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    """In plain torch, as near as the model of transformers in that dtype: both round, at other places."""
    reference = saved(case)
    expected = torch.cat([reference.logits(tokens) for tokens in sequences])
    theirs = halved_transformers(reference, dtype, sequences)
    ours = torch.cat(PagedRun(load(reference, dtype, kernels=OFF), seed=1).logits(sequences))
    assert ours.dtype == torch.float32
    assert root_mean_square(ours - expected) < 1.3 * root_mean_square(theirs - expected)


def halved_transformers(reference: Saved, dtype: torch.dtype, sequences: list[list[int]]) -> torch.Tensor:
    return logits_of(AutoModelForCausalLM.from_pretrained(reference.folder, dtype=dtype).eval(), sequences)


# Every architecture with attention, on the best level; some on each.
ATTENDING = [case for case in NATIVE if CASES[case].model_type not in ("mamba", "falcon_mamba", "mamba2", "t5", "mt5")]
_GENERATOR = torch.Generator().manual_seed(5)
TEXTS = [torch.randint(VOCAB, (50,), generator=_GENERATOR).tolist() for _ in range(5)]
NEARER = [(case, BEST) for case in ATTENDING] + [(case, each) for case in HALVED for each in BESIDES]


@pytest.mark.parametrize(("case", "kernels"), NEARER)
def test_native_bfloat16_is_nearer_to_float32_than_torchs(
    case: str, kernels: str, saved: Callable[[str], Saved]
) -> None:
    """Compared with the same rounded weights in float32: what the arithmetic adds, between transformers and us. By the
    median token, and for mixtures by the median of five texts: a token that is sent to another expert on a hair's
    difference, in theirs or in ours, outweighs all others of its text."""
    reference = saved(case)
    rounded = copy.deepcopy(reference.reference)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    halved = AutoModelForCausalLM.from_pretrained(reference.folder, dtype=torch.bfloat16).eval()
    run = PagedRun(load(reference, torch.bfloat16, kernels=kernels), seed=1)
    ratios = []
    for each in [[text] for text in TEXTS] if case in MIXTURES else [TEXTS]:
        expected, theirs = logits_of(rounded, each), logits_of(halved, each)
        ours = torch.cat(run.logits(each))
        ratios.append(median_error(ours - expected) / median_error(theirs - expected))
    assert statistics.median(ratios) < 1.0, ratios


def logits_of(model: torch.nn.Module, sequences: list[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([tokens])).logits[0].float() for tokens in sequences])


def median_error(difference: torch.Tensor) -> float:
    """Of each token the root mean square."""
    return float(difference.pow(2).mean(dim=-1).sqrt().median())


@pytest.mark.skipif(not can_pack(torch.zeros(1, 1, dtype=torch.bfloat16)), reason="oneDNN has no bfloat16 here")
@pytest.mark.parametrize("case", ["llama, packed", "gpt2", "gemma2, window 18", "mixtral"])
def test_onednn_multiplies_where_it_is_faster(case: str, saved: Callable[[str], Saved]) -> None:
    """As on a CPU with tiles: products by oneDNN; experts, the head and everything else by the kernels."""
    reference = saved(case)
    machine = Machine(None, 1, 0, 0).without_products()
    native = f"native ({machine.level})"
    model = load_model(reference.folder, dtype=torch.bfloat16, device=CPU, group=Group(), kernels=machine)
    names = model.implementations()
    assert "onednn" in names["linear"]
    assert (native in names["linear"]) == (case in MIXTURES)
    assert {names[name] for name in ("attention", "norm", "logits")} == {native}
    halved = AutoModelForCausalLM.from_pretrained(reference.folder, dtype=torch.bfloat16).eval()
    run, ratios = PagedRun(model, seed=1), []
    for text in TEXTS:
        expected, theirs = logits_of(reference.reference, [text]), logits_of(halved, [text])
        ratios.append(median_error(run.logits([text])[0] - expected) / median_error(theirs - expected))
    assert statistics.median(ratios) < 1.3, ratios


def test_a_copied_page_serves_another_row(saved: Callable[[str], Saved]) -> None:
    """Copy-on-write: a sibling shares the full page, copies the partly filled one, computes the last token itself."""
    reference = saved("llama")
    tokens = torch.randint(99, (21,)).tolist()
    run = PagedRun(load(reference), seed=3)
    done, found = [0, 20], [[], []]
    run.table[0, :2], run.table[1, :2] = [7, 3], [7, 5]
    run._step([tokens, tokens], [(0, 0, 21)], done, found)
    paged(run.model).copy_pages(torch.tensor([3], dtype=torch.int32), torch.tensor([5], dtype=torch.int32))
    run._step([tokens, tokens], [(1, 1, 1)], done, found)
    torch.testing.assert_close(found[1][0][0], reference.logits(tokens)[-1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", [*Machine.levels(), OFF])
@pytest.mark.parametrize("case", ["gpt2, packed", "gemma2, window 18"])
def test_a_large_tied_table_is_kept_once(
    case: str, kernels: str, dtype: torch.dtype, saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed, and then the embedding reads its rows from that; or plain, and then the head does."""
    reference = saved(case)
    two = load(reference, dtype, kernels=kernels).implementations()
    assert two["embed"] == "torch"
    assert two["logits"] in two["linear"]
    monkeypatch.setattr(operators, "MAX_TIED_COPY_BYTES", 0)
    model = load(reference, dtype, kernels=kernels)
    one = model.implementations()
    assert (one["embed"], one["logits"]) == (("torch", "torch") if kernels == OFF else (two["linear"],) * 2)
    tokens = torch.randint(99, (20,)).tolist()
    (found,) = PagedRun(model, seed=1).logits([tokens])
    atol, rtol = (1e-4, 1e-5) if dtype is torch.float32 else (0.5, 0.1)
    torch.testing.assert_close(found, reference.logits(tokens), atol=atol, rtol=rtol)


@pytest.mark.parametrize("kernels", [BEST, OFF])
def test_pages_cost_what_the_model_says(kernels: str, saved: Callable[[str], Saved]) -> None:
    model = load(saved("llama"), kernels=kernels)
    model.allocate_kv(10)
    assert pool(model).values.nbytes == 10 * model.page_bytes()
    assert model.page_bytes() == 3 * 16 * 2 * 2 * 16 * 4  # layers, tokens, K and V, heads, head size, bytes
