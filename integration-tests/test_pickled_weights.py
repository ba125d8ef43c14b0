"""Pickled weights: converted at the first start, served as the same model, refused when they are more than tensors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import torch
from conftest import Launch
from refusals import start
from safetensors.torch import load_file


@pytest.fixture
def pickled(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """The same model with its weights in two pickled files and their index, and what training leaves beside them."""
    source = checkpoint()
    folder = tmp_path / "model"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in ((1, names[::2]), (2, names[1::2])):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save({"lr": 1.0}, folder / "training_args.bin")
    return folder


def test_they_are_converted_once_and_serve_the_same_model(
    pickled: Path, checkpoint: Callable[..., Path], launch: Launch, tmp_path: Path
) -> None:
    before = {path.name for path in pickled.iterdir()}
    cache = tmp_path / "cache"
    server = launch(pickled, "--dtype", "float32", "--num-shard", "2", HUGGINGFACE_HUB_CACHE=str(cache))
    details = server.generate("def f():", max_new_tokens=12, details=True, decoder_input_details=True)["details"]
    prompt = [token["id"] for token in details["prefill"]]
    expected, _ = checkpoints.Reference(checkpoint()).greedy(prompt, 12)
    assert [token["id"] for token in details["tokens"]] == expected
    assert "converting pytorch_model-00002-of-00002.bin to safetensors" in server.output()
    assert {path.name for path in pickled.iterdir()} == before
    (converted,) = (path for path in (cache / "millrace").iterdir() if path.is_dir())
    assert len(list(converted.glob("*.safetensors"))) == 2
    (pickled / "tokenizer.json").write_text("{}")  # ends the second start soon, but after the weights are found
    again = start(pickled, HUGGINGFACE_HUB_CACHE=str(cache))
    assert "serving what was converted from them" in again.log
    assert "converting" not in again.log


class Evil:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.touched}",)


def test_a_malicious_file_ends_the_start_and_runs_nothing(pickled: Path, tmp_path: Path) -> None:
    touched, victim = tmp_path / "touched", pickled / "pytorch_model-00001-of-00002.bin"
    torch.save({"evil": Evil(touched)}, victim)
    refused = start(pickled, HUGGINGFACE_HUB_CACHE=str(tmp_path / "cache"))
    assert refused.status == 1
    assert refused.sentence.startswith('Error: DownloadError("pickled weights cannot be converted to safetensors: ')
    assert f"{victim}: refused: it asks for `posix.system`" in refused.sentence
    assert not touched.exists()
