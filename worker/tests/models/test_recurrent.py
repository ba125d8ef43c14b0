"""Recurrences against their definition, and what a recurrent model does beyond parity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from millrace_worker.config import WorkerConfig
from millrace_worker.distributed import Group
from millrace_worker.models import preflight
from millrace_worker.models.architectures.mamba import step_limits
from millrace_worker.models.hf_config import ConfigError
from millrace_worker.models.load import load_native
from millrace_worker.models.recurrent import scan
from millrace_worker.models.recurrent.model import RecurrentLM
from millrace_worker.models.recurrent.scan import Drive
from millrace_worker.models.sharding import ShardingError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoints import Saved
from .paged import RowsRun

CPU = torch.device("cpu")


def load(folder: Path) -> RecurrentLM:
    model = load_native(folder, dtype=torch.float32, device=CPU, group=Group())
    assert isinstance(model, RecurrentLM)
    return model


def drive(tokens: int, *width: int, per_group: tuple[int, ...], exact: torch.dtype = torch.float64) -> Drive:
    """Random, and in float64 so that two orders of summation agree."""
    x = torch.randn(tokens, *width, dtype=exact)
    steps = torch.rand(tokens, width[0], dtype=exact) * 2
    return Drive(x, steps, *torch.randn(2, tokens, *per_group, dtype=exact))


def one_by_one(given: Drive, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition. `decay` [C, N] or [H]; `state` [C, N] or [H, P, N]."""
    found = []
    for x, step, into, out in zip(given.x, given.steps, given.into, given.out, strict=True):
        if x.ndim == 1:
            state = torch.exp(step[:, None] * decay) * state + (step * x)[:, None] * into
            found.append(state @ out)
            continue
        into, out = (each.repeat_interleave(len(x) // len(each), 0) for each in (into, out))  # noqa: PLW2901
        state = torch.exp(step * decay)[:, None, None] * state + torch.einsum("h,hp,hn->hpn", step, x, into)
        found.append(torch.einsum("hpn,hn->hp", state, out))
    return torch.stack(found), state


@pytest.mark.parametrize("tokens", [1, 2, 40, 131])
def test_a_selective_scan_is_its_definition(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SELECTIVE_BLOCK_BYTES", 4 * 6 * 5 * 16)
    given, decay = drive(tokens, 6, per_group=(5,)), -torch.rand(6, 5, dtype=torch.float64)
    state = torch.randn(6, 5, dtype=torch.float64)
    expected, after = one_by_one(given, decay, state)
    torch.testing.assert_close(scan.selective_scan(given, decay, state), expected)
    torch.testing.assert_close(state, after)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 64, 65, 150])
def test_a_paired_scan_is_its_definition(tokens: int, groups: int) -> None:
    given, decay = drive(tokens, 4, 3, per_group=(groups, 5)), -torch.rand(4, dtype=torch.float64)
    state = torch.randn(4, 3, 5, dtype=torch.float64)
    expected, after = one_by_one(given, decay, state)
    torch.testing.assert_close(scan.paired_scan(given, decay, state), expected)
    torch.testing.assert_close(state, after)


def test_a_strong_decay_overflows_nowhere() -> None:
    given = drive(64, 4, 3, per_group=(2, 5), exact=torch.float32)
    state = torch.randn(4, 3, 5)
    expected, after = one_by_one(given, torch.full((4,), -80.0), state)
    torch.testing.assert_close(scan.paired_scan(given, torch.full((4,), -80.0), state), expected)
    torch.testing.assert_close(state, after)


def test_a_selective_scan_has_the_bits_of_single_steps() -> None:
    """A sequence that is computed anew after a fault goes on as it would have."""
    given, decay = drive(50, 24, per_group=(16,), exact=torch.float32), -torch.rand(24, 16)
    state = torch.randn(24, 16)
    single = state.clone()[None]
    steps = [scan.selective_step(given.part(slice(t, t + 1)), decay, single) for t in range(50)]
    assert torch.equal(torch.cat(steps), scan.selective_scan(given, decay, state))
    assert torch.equal(single[0], state)


def test_rows_cost_what_the_model_says(saved: Callable[[str], Saved]) -> None:
    model = load(saved("mamba2").folder)
    model.allocate_rows(5, 1000)
    held = sum(each.tails.nbytes + each.states.nbytes for each in model._rows)
    assert held == 5 * model.row_bytes(1000)
    assert model.row_bytes(1000) == model.row_bytes(1) == 3 * 4 * (3 * (128 + 2 * 4 * 24) + 8 * 16 * 24)


def test_half_precision_keeps_states_in_float32(saved: Callable[[str], Saved], sequences: list[list[int]]) -> None:
    for case in ("mamba", "mamba2"):
        reference = saved(case)
        model = load_native(reference.folder, dtype=torch.bfloat16, device=CPU, group=Group())
        assert isinstance(model, RecurrentLM)
        found = torch.cat(RowsRun(model, seed=1).logits(sequences))
        expected = torch.cat([reference.logits(tokens) for tokens in sequences])
        assert {rows.states.dtype for rows in model._rows} == {torch.float32}
        assert found.dtype is torch.float32
        assert (found - expected).square().mean() < (0.15 * expected).square().mean()


def test_the_first_checkpoints_name_of_the_embedding(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    reference = saved("mamba")
    shutil.copy(reference.folder / "config.json", tmp_path)
    tensors = load_file(reference.folder / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokens = torch.randint(99, (20,)).tolist()
    (found,) = RowsRun(load(tmp_path), seed=1).logits([tokens])
    torch.testing.assert_close(found, reference.logits(tokens), atol=1e-4, rtol=1e-5)


def test_more_than_one_rank_is_refused_at_once(saved: Callable[[str], Saved]) -> None:
    folder = saved("mamba").folder
    with pytest.raises(ShardingError, match="--num-shard is 2, set it to 1"):
        preflight.check(WorkerConfig(model_path=folder, uds_path="unused", world_size=2))
    with pytest.raises(ShardingError, match="--num-shard is 2, set it to 1"):
        load_native(folder, dtype=torch.float32, device=CPU, group=Group(0, 2))


@pytest.mark.parametrize("stored", [[0.0, {"__float__": "Infinity"}], [0.0, torch.inf], (0, "inf")])
def test_steps_without_a_limit_are_read_however_they_are_written(stored: object) -> None:
    assert step_limits(stored) == (0.0, torch.inf)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("num_heads", 7, "7 heads of 16 are not `expand` 2 times `hidden_size` 64"),
        ("n_groups", 3, "`num_heads` 8 does not divide by `n_groups` 3"),
        ("hidden_act", "mish", "the activation 'mish'"),
        ("time_step_limit", [0.1], "`time_step_limit` must be two numbers"),
        ("state_size", 0, "`state_size` must be a positive whole number"),
    ],
)
def test_configurations_that_cannot_be_are_refused(
    field: str, value: object, says: str, saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    config = json.loads((saved("mamba2").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ConfigError, match=says):
        load(tmp_path)
