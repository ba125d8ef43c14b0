"""Models on transformers' own code over our pages: the same scores as by themselves, or a refusal that says why."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.model import Model
from millrace_worker.models.choice import NATIVE, TRANSFORMERS, ModelAsk, choose, load
from millrace_worker.models.hf_config import ConfigError, UnsupportedError
from transformers import AutoConfig

from .checkpoints import Saved
from .paged import PagedRun

HOOKED = ["llama", "qwen3", "gemma2, window 18", "gpt2", "gpt-neox, parallel", "mistral, window 9"]


def ask(folder: Path, *, kernels: str = "", trust: bool = False) -> ModelAsk:
    return ModelAsk(
        folder=folder,
        dtype=torch.float32,
        device=torch.device("cpu"),
        group=Group(),
        kernels=cpu_kernels.find(kernels, 1),
        trust_remote_code=trust,
    )


def hosted(folder: Path, *, kernels: str = "", trust: bool = False) -> Model:
    return load(ask(folder, kernels=kernels, trust=trust), choose(folder, TRANSFORMERS))


@pytest.mark.parametrize("kernels", ["", cpu_kernels.OFF])
@pytest.mark.parametrize("case", HOOKED)
def test_a_hooked_model_gives_its_own_scores_in_random_chunks(
    case: str, kernels: str, saved: Callable[[str], Saved], sequences: list[list[int]]
) -> None:
    reference, seed = saved(case), random.randrange(2**32)
    model = hosted(reference.folder, kernels=kernels)
    assert (model.implementation, dict(model.missing)) == ("transformers", {})
    for tokens, logits in zip(sequences, PagedRun(model, seed=seed).logits(sequences), strict=True):
        torch.testing.assert_close(logits, reference.logits(tokens), atol=1e-4, rtol=1e-5, msg=lambda m: f"{seed=} {m}")


def test_native_where_there_is_a_spec_else_transformers(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    folder = saved("llama").folder
    assert choose(folder, "auto").implementation == NATIVE
    assert choose(folder, "transformers").implementation == TRANSFORMERS
    AutoConfig.for_model("biogpt", architectures=["BioGptForCausalLM"]).save_pretrained(tmp_path)
    choice = choose(tmp_path, "auto")
    assert choice.implementation == TRANSFORMERS
    assert "BioGptForCausalLM" in choice.reason
    with pytest.raises(UnsupportedError, match=r"BioGptForCausalLM is not supported; supported are .*transformers may"):
        choose(tmp_path, "native")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is known neither"),
        ({"model_type": "nobodys", "architectures": ["Nobodys"]}, "'nobodys' is not known to transformers"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "t5 is an encoder-decoder"),
        ({"num_hidden_layers": 4}, "tensors of LlamaForCausalLM are missing from the checkpoint: model.layers.3"),
        ({"intermediate_size": 97}, "cannot load this model|do not fit in the checkpoint"),
    ],
)
def test_what_transformers_would_make_up_is_refused(
    values: dict[str, object], message: str, saved: Callable[[str], Saved], tmp_path: Path
) -> None:
    folder = saved("llama").folder
    config = json.loads((folder / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        hosted(tmp_path)
