"""`--quantize eetq`: the model is the one whose linear weights are rounded to 8 bits, on one rank and on several."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from millrace_kernels import Machine
from millrace_worker import cpu_kernels, load, logs
from millrace_worker.config import read_config
from millrace_worker.distributed import Group
from millrace_worker.models.changes import Changes
from millrace_worker.models.choice import ModelAsk, choose
from millrace_worker.models.choice import load as load_choice
from millrace_worker.models.hf_config import ConfigError
from millrace_worker.models.scaling import Stretch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from .checkpoints import Saved
from .paged import run
from .parity import TOLERANCE, Trial
from .rank_group import Job, RankGroup

CPU = torch.device("cpu")
EETQ = Changes(quantize="eetq")
CASES = ["llama", "mixtral"]
# What Llama and Mixtral name the linear layers of their blocks, but for the router.
LINEAR = re.compile(r"layers\.\d+\..*(proj|\.w[123])\.weight$")


def rounded(weight: Tensor) -> Tensor:
    """[out, in] float32, in steps of a 127th of each output's greatest value."""
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / step).round() * step


@pytest.fixture(scope="session")
def quantized(saved: Callable[[str], Saved], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """The folder of the case as it is, beside transformers' model of the rounded weights."""
    made: dict[str, Saved] = {}

    def get(case: str) -> Saved:
        if case not in made:
            plain, folder = saved(case).folder, tmp_path_factory.mktemp("rounded") / "model"
            shutil.copytree(plain, folder)
            tensors = load_file(plain / "model.safetensors")
            changed = {name: rounded(tensor) for name, tensor in tensors.items() if LINEAR.search(name)}
            assert len(changed) >= 7
            save_file(tensors | changed, folder / "model.safetensors", {"format": "pt"})
            reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            made[case] = Saved(plain, reference)
        return made[case]

    return get


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_rounded_weights(
    case: str,
    kernels: str,
    quantized: Callable[[str], Saved],
    saved: Callable[[str], Saved],
    sequences: list[list[int]],
) -> None:
    reference = quantized(case)
    trial = Trial.of(reference, sequences)
    choice = choose(reference.folder, "auto", EETQ)
    assert "weights are quantized at load (eetq)" in choice.reason
    machine = cpu_kernels.find(kernels, 1)
    ask = ModelAsk(
        folder=reference.folder, dtype=torch.float32, device=CPU, group=Group(), kernels=machine, changes=EETQ
    )
    model = load_choice(ask, choice)
    trial.check(run(model, seed=1).logits(trial.sequences, trial.prompts), case)
    off = (reference.logits(sequences[-1]) - saved(case).logits(sequences[-1])).abs().max()
    assert off > 10 * TOLERANCE, "the weights are not quantized"


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
@pytest.mark.parametrize("case", CASES)
def test_ranks_quantize_alike(
    case: str,
    kernels: str,
    quantized: Callable[[str], Saved],
    sequences: list[list[int]],
    ranks: Callable[[int], RankGroup],
) -> None:
    """Scales are of whole rows, though two ranks have a half each of some."""
    reference = quantized(case)
    trial = Trial.of(reference, sequences)
    job = Job(reference.folder, trial.sequences, trial.prompts, kernels, quantize="eetq")
    trial.check(ranks(2).logits(job), "2 ranks")


def test_the_log_names_the_bits(saved: Callable[[str], Saved], caplog: pytest.LogCaptureFixture) -> None:
    argv = ["--model-path", str(saved("llama").folder), "--uds-path", "unused", "--dtype", "bfloat16"]
    with caplog.at_level(logging.INFO, logger=logs.LOGGER_NAME):
        rank = load.load_rank(read_config([*argv, "--quantize", "eetq"], {"OMP_NUM_THREADS": "1"}))
    assert rank.describe().implementation == "native (eetq)"
    (loaded,) = (record for record in caplog.records if record.message == "model loaded")
    best = Machine.levels()[-1]
    fields = vars(loaded)["fields"]
    assert fields["linear"] == f"native ({best}, int8)"
    assert fields["logits"] == f"native ({best})", "the head stays as it is"


def test_other_devices_and_models_are_refused(
    saved: Callable[[str], Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case, who in [("mamba", "recurrent layers"), ("t5", "an encoder and a decoder")]:
        with pytest.raises(ConfigError, match=f"--quantize eetq needs the native decoder, not {who}"):
            choose(saved(case).folder, "auto", EETQ)
    with pytest.raises(ConfigError, match="--quantize eetq needs the native decoder, not transformers' own code"):
        choose(saved("llama").folder, "transformers", EETQ)
    with pytest.raises(ConfigError, match="--rope-factor need the native decoder, not transformers' own code"):
        choose(saved("llama").folder, "transformers", Changes(stretch=Stretch("linear", 2.0)))
    config = (saved("llama").folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace("{", '{"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]},', 1)
    )
    with pytest.raises(ConfigError, match="those of this checkpoint are quantized"):
        choose(tmp_path, "auto", EETQ)
    monkeypatch.setattr(load, "choose_device", lambda rank: torch.device("cuda"))
    argv = ["--model-path", str(saved("llama").folder), "--uds-path", "unused", "--quantize", "eetq"]
    with pytest.raises(ValueError, match="--quantize eetq: weights are quantized on CPUs only"):
        load.load_rank(read_config(argv, {"OMP_NUM_THREADS": "1"}))
