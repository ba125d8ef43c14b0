"""Which kernels a worker gets: the best, those that the environment names, none, or a clear refusal."""

from __future__ import annotations

import builtins
import logging
import os
import subprocess
import sys
from pathlib import Path

import millrace_kernels
import pytest
import torch
from millrace_kernels import Machine
from millrace_worker import cpu_kernels, logs
from millrace_worker.cpu_kernels import KernelsError, find
from millrace_worker.layers.operators import NativeOperators
from transformers import AutoConfig, AutoModelForCausalLM

CPU = torch.device("cpu")


def test_unset_is_the_best_level() -> None:
    found = find("", 2)
    assert found is not None
    assert (found.level, found.threads) == (Machine.levels()[-1], 2)


def test_off_is_off() -> None:
    assert find("off", 1) is None


@pytest.mark.parametrize("level", Machine.levels())
def test_every_level_of_this_cpu_can_be_forced(level: str) -> None:
    found = find(level, 1)
    assert found is not None
    assert (found.level, found.threads) == (level, 1)


def test_another_level_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(KernelsError, match=r"MILLRACE_CPU_KERNELS is 'avx1024'.*portable.*'off' turns kernels off"):
        find("avx1024", 1)


def test_kernels_of_another_interface_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(millrace_kernels, "INTERFACE", 0)
    with pytest.raises(KernelsError, match="kernels have interface 0, this worker needs"):
        find("", 1)


def test_without_the_module_torch_computes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "millrace_kernels":
            raise ImportError("not installed")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with caplog.at_level(logging.WARNING, logger=logs.LOGGER_NAME):
        assert find("", 1) is None
    assert ["no native CPU kernels" in record.message for record in caplog.records] == [True]
    with pytest.raises(KernelsError, match="MILLRACE_CPU_KERNELS is 'portable', but the kernels cannot be loaded"):
        find("portable", 1)


def test_the_threads_are_torchs_own() -> None:
    """The functions lie in the OpenMP library that torch brings along."""
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, _, rest = line.partition(" ")
        first, last = (int(bound, 16) for bound in bounds.split("-"))
        mapped += [rest.split()[-1] for address in cpu_kernels.torch_openmp() if first <= address < last]
    assert len(mapped) == 2
    assert mapped[0] == mapped[1]
    assert "libgomp" in Path(mapped[0]).name
    packages = Path(torch.__file__).resolve().parent.parent  # mapped files are named without links
    assert Path(mapped[0]).is_relative_to(packages)


def test_a_worker_with_an_impossible_level_ends_with_one_line(tmp_path: Path) -> None:
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).save_pretrained(tmp_path)
    command = [
        sys.executable,
        "-m",
        "millrace_worker",
        "--model-path",
        str(tmp_path),
        "--uds-path",
        str(tmp_path / "s"),
    ]
    environment = os.environ | {"MILLRACE_CPU_KERNELS": "avx1024"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert "MILLRACE_CPU_KERNELS is 'avx1024'" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_native_operators_are_for_float32_and_bfloat16_on_cpus() -> None:
    assert NativeOperators.supports(torch.float32, CPU)
    assert NativeOperators.supports(torch.bfloat16, CPU)
    assert not NativeOperators.supports(torch.float16, CPU)
    assert not NativeOperators.supports(torch.bfloat16, torch.device("cuda"))
