"""From a worker's environment to the operators of its model, as the log tells them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from millrace_kernels import Machine
from millrace_worker import load, logs
from millrace_worker.config import read_config
from millrace_worker.load import load_rank
from millrace_worker.models.weight_files import find_tensors
from millrace_worker.placement import Place, as_list

from .checkpoints import Saved


def operators_of(
    reference: Saved, dtype: str, environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> dict[str, str]:
    argv = ["--model-path", str(reference.folder), "--uds-path", "unused", "--dtype", dtype]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger=logs.LOGGER_NAME):
        load_rank(read_config(argv, {"OMP_NUM_THREADS": "1"} | environment))
    (loaded,) = (record for record in caplog.records if record.message == "model loaded")
    fields = vars(loaded)["fields"]
    return {name: fields[name] for name in ("attention", "linear", "norm", "logits")}


@pytest.mark.parametrize("level", Machine.levels())
def test_the_environment_names_the_level(
    level: str, saved: Callable[[str], Saved], caplog: pytest.LogCaptureFixture
) -> None:
    found = operators_of(saved("qwen3"), "bfloat16", {"MILLRACE_CPU_KERNELS": level}, caplog)
    assert set(found.values()) == {f"native ({level})"}


def test_unset_is_the_best_and_off_is_torch(saved: Callable[[str], Saved], caplog: pytest.LogCaptureFixture) -> None:
    best = f"native ({Machine.levels()[-1]})"
    assert set(operators_of(saved("qwen3"), "float32", {}, caplog).values()) == {best}
    off = operators_of(saved("qwen3"), "float32", {"MILLRACE_CPU_KERNELS": "off"}, caplog)
    assert not any("native" in name for name in off.values())


def test_what_kernels_do_not_support_runs_on_torch_and_is_named(
    saved: Callable[[str], Saved], caplog: pytest.LogCaptureFixture
) -> None:
    best = f"native ({Machine.levels()[-1]})"
    half = operators_of(saved("qwen3"), "float16", {}, caplog)
    assert not any("native" in name for name in half.values())
    heads_of_24 = operators_of(saved("llama, tied, biased, wide heads"), "float32", {}, caplog)
    assert "torch" in heads_of_24.pop("attention")
    assert set(heads_of_24.values()) == {best}


def test_the_reading_of_the_weights_can_be_followed(saved: Callable[[str], Saved]) -> None:
    folder = saved("qwen3").folder
    heard: list[tuple[int, int]] = []
    config = read_config(["--model-path", str(folder), "--uds-path", "unused"], {"OMP_NUM_THREADS": "1"})
    load_rank(config, lambda done, total: heard.append((done, total)))
    stored = find_tensors(folder)
    total = sum(tensor.stop - tensor.start for tensor in stored.values())
    assert len(heard) == len(stored)
    assert {of for _, of in heard} == {total}
    assert heard == sorted(heard)
    assert heard[-1] == (total, total)


def test_a_rank_takes_its_place_before_it_reads_weights(
    saved: Callable[[str], Saved], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks' place, taken by one; a system that does not let it take it does not stop it."""
    pinned: list[frozenset[int]] = []
    read: list[int] = []

    def pin(cores: frozenset[int]) -> None:
        assert not read
        pinned.append(cores)
        if len(pinned) > 1:
            raise PermissionError("not yours")

    monkeypatch.setattr(load, "pin", pin)
    config = read_config(["--model-path", str(saved("qwen3").folder), "--uds-path", "unused"], {"OMP_NUM_THREADS": "1"})
    placed = replace(config, place=Place(1, (3,), frozenset({40, 41}), quota=7))
    told = []
    for _ in range(2):
        read.clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, logger=logs.LOGGER_NAME):
            load_rank(placed, lambda done, _: read.append(done))
        assert read
        (record,) = (record for record in caplog.records if record.message == "computing on CPUs")
        told.append(vars(record)["fields"])
    here = as_list(os.sched_getaffinity(0))
    assert pinned == [frozenset({40, 41})] * 2
    assert told == [
        {"threads": 1, "cores": here, "nodes": "3", "quota": 7},
        {"threads": 1, "cores": here, "quota": 7},
    ]


def test_a_rank_without_a_place_and_one_on_a_gpu_stay_where_they_are(
    saved: Callable[[str], Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pin(_: frozenset[int]) -> None:
        raise AssertionError("pinned")

    def device(_: int) -> torch.device:
        return torch.device("cuda", 0)

    monkeypatch.setattr(load, "pin", pin)
    config = read_config(["--model-path", str(saved("qwen3").folder), "--uds-path", "unused"], {"OMP_NUM_THREADS": "1"})
    load_rank(config)
    # What is refused on a GPU ends the load behind its choice.
    monkeypatch.setattr(load, "choose_device", device)
    placed = replace(config, place=Place(1, (1,), frozenset({1})), quantize="eetq")
    with pytest.raises(ValueError, match="on CPUs only"):
        load_rank(placed)
