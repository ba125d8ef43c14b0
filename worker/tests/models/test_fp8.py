"""Checkpoints in float8 blocks give what their dequantized weights give, however ranks cut the blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from millrace_worker.distributed import Group
from millrace_worker.models.checkpoint import CheckpointError
from millrace_worker.models.choice import NATIVE, ModelAsk, choose, load
from millrace_worker.models.fp8 import dequantized
from millrace_worker.models.hf_config import ConfigError, UnsupportedError
from millrace_worker.models.load import load_model
from millrace_worker.models.quantization import Fp8Blocks
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from .checkpoints import Saved
from .fp8_files import in_blocks, rewritten, state
from .paged import run
from .parity import TOLERANCE
from .rank_group import Job, RankGroup

CPU = torch.device("cpu")
# Blocks that divide nothing of these models: their last rows and columns, and those of a rank, are parts of blocks.
RAGGED = (24, 40)
CASES = ["llama", "deepseek-v3", "granite-moe", "dbrx"]


@pytest.fixture(scope="session")
def packed(saved: Callable[[str], Saved], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """The case in float8, beside transformers' model of what that says."""
    made: dict[str, Saved] = {}

    def get(case: str) -> Saved:
        if case not in made:
            folder = tmp_path_factory.mktemp("fp8")
            plain = rewritten(saved(case), folder / "plain", folder / "packed", RAGGED)
            reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
            made[case] = Saved(folder / "packed", reference)
        return made[case]

    return get


def check(found: list[torch.Tensor], reference: Saved, sequences: list[list[int]]) -> None:
    for tokens, logits in zip(sequences, found, strict=True):
        clear = reference.num_clear(tokens)
        torch.testing.assert_close(logits[:clear], reference.logits(tokens)[:clear], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_dequantized_weights(
    case: str, packed: Callable[[str], Saved], saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    reference = packed(case)
    choice = choose(reference.folder, "auto")
    assert choice.implementation == NATIVE
    assert "fp8 weights are dequantized" in choice.reason
    model = load(ModelAsk(folder=reference.folder, dtype=torch.float32, device=CPU, group=Group()), choice)
    check(run(model, seed=1).logits(sequences), reference, sequences)
    off = (reference.logits(sequences[-1]) - saved(case).logits(sequences[-1])).abs().max()
    assert off > 10 * TOLERANCE, "the weights are not quantized"


@pytest.mark.parametrize(("case", "size"), [("llama", 2), ("deepseek-v3", 2), ("granite-moe", 2), ("deepseek-v3", 4)])
def test_ranks_cut_blocks(
    case: str,
    size: int,
    packed: Callable[[str], Saved],
    sequences: list[list[int]],
    ranks: Callable[[int], RankGroup],
) -> None:
    reference = packed(case)
    check(ranks(size).logits(Job(reference.folder, sequences)), reference, sequences)


def test_logits_are_those_of_transformers_own_reader(
    saved: Callable[[str], Saved], sequences: list[list[int]], tmp_path: Path
) -> None:
    """Which reads whole blocks only."""
    rewritten(saved("llama"), tmp_path / "plain", tmp_path / "packed", (16, 32))
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32).eval()
    model = load_model(tmp_path / "packed", dtype=torch.float32, device=CPU, group=Group())
    check(run(model, seed=1).logits(sequences), Saved(tmp_path / "packed", own), sequences)


def test_whole_blocks_become_what_transformers_makes_of_them() -> None:
    values, factors, _ = in_blocks(torch.randn(3, 48, 80), (16, 40))
    expected = Fp8Dequantize(None)._dequantize_one(values, factors, output_dtype=torch.float32)
    assert torch.equal(dequantized(values, factors, Fp8Blocks(16, 40)), expected)


part = st.tuples(st.integers(0, 70), st.integers(0, 70)).map(sorted).map(lambda ends: slice(*ends))


@settings(deadline=None, max_examples=60)
@given(part, part, st.integers(1, 40), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_part_is_that_of_the_whole(
    rows: slice, columns: slice, block_rows: int, block_columns: int, dtype: torch.dtype
) -> None:
    blocks = Fp8Blocks(block_rows, block_columns)
    values, factors, _ = in_blocks(torch.randn(70, 70), (block_rows, block_columns))
    factors, (down, across) = factors.to(dtype), blocks.touched(rows, columns)
    spread = factors.float().repeat_interleave(block_rows, 0).repeat_interleave(block_columns, 1)[:70, :70]
    begin = (rows.start % block_rows, columns.start % block_columns)
    found = dequantized(values[rows, columns], factors[down, across], blocks, begin)
    assert torch.equal(found, (values.float() * spread)[rows, columns])


BROKEN = {
    "no factors": (lambda stored, name: stored.pop(name), r"{name} of shape \[3, 2\] is missing"),
    "other factors": (
        lambda stored, name: stored.update({name: stored[name][:1].clone()}),
        r"{name} has shape \[1, 2\], config.json makes it \[3, 2\]",
    ),
    "factors of nothing": (
        lambda stored, name: stored.update({name.removesuffix("_scale_inv"): torch.randn(64, 64)}),
        r"belongs to no part of the model that config.json describes: {name}",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_wrong_with_factors_is_named(how: str, packed: Callable[[str], Saved], tmp_path: Path) -> None:
    change, message = BROKEN[how]
    name, folder = "model.layers.1.self_attn.o_proj.weight_scale_inv", packed("llama").folder
    stored = load_file(folder / "model.safetensors")
    change(stored, name)
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=message.format(name=name)):
        load_model(tmp_path, dtype=torch.float32, device=CPU, group=Group())


@pytest.mark.parametrize("found", [[128], [128, 0], "128", 128, [128.0, 128]])
def test_blocks_of_no_size_are_refused(found: object, packed: Callable[[str], Saved], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((packed("llama").folder / "config.json").read_text())
    state(tmp_path, weight_block_size=found)
    with pytest.raises(ConfigError, match="`weight_block_size` of `quantization_config` must be two positive whole"):
        choose(tmp_path, "auto")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"fmt": "e5m2"}, "fp8 with `fmt` 'e5m2'; e4m3 is read"),
        ({"activation_scheme": "static"}, "`activation_scheme` 'static'"),
        ({"expert_dtype": "fp4"}, "`expert_dtype` 'fp4'"),
        ({"weight_block_size": None}, "fp8 without blocks"),
    ],
)
def test_other_forms_are_left_to_transformers(
    stated: dict[str, object], message: str, packed: Callable[[str], Saved], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((packed("llama").folder / "config.json").read_text())
    state(tmp_path, **stated)
    assert message in choose(tmp_path, "auto").reason
    with pytest.raises(UnsupportedError, match=message):
        choose(tmp_path, "native")
