"""What cannot be served ends the start within seconds: one clear sentence, a status, and nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from refusals import start
from safetensors.torch import load_file, save_file

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint in two files, of float32."""
    folder = checkpoints.make(tmp_path_factory.mktemp("base"), "llama")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for file, part in ((FIRST, names[: len(names) // 2]), (SECOND, names[len(names) // 2 :])):
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def change(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for file in (FIRST, SECOND):
        tensors = load_file(folder / file)
        if name in tensors:
            save_file(tensors | {name: change(tensors[name]).contiguous()}, folder / file)


def add(folder: Path, name: str) -> None:
    save_file(load_file(folder / SECOND) | {name: torch.zeros(2)}, folder / SECOND)


def index(folder: Path, **entries: str) -> None:
    path = folder / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    path.write_text(json.dumps({"weight_map": weight_map | entries}))


def config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


UP = "model.layers.1.mlp.up_proj.weight"
# What is broken, and what the sentence must hold.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda m: (m / SECOND).unlink(), rf"DownloadError.*index\.json names .*missing.*{SECOND}"),
    "truncated file": (lambda m: cut(m / SECOND, -1000), rf"{SECOND}: has \d+ bytes.*need \d+: it is cut off"),
    "empty file": (lambda m: cut(m / FIRST, 0), rf"{FIRST}: is empty"),
    "wrong shape": (
        lambda m: change(m, UP, lambda t: t[:-1]),
        rf"{SECOND}: the tensor {UP} has shape \[95, 64\], config\.json makes it \[96, 64\]",
    ),
    "wrong dtype": (
        lambda m: change(m, UP, lambda t: t.to(torch.int8)),
        rf"{SECOND}: the tensor {UP} has the dtype I8; .* float32, float16, bfloat16",
    ),
    "index naming an absent tensor": (
        lambda m: index(m, **{"model.layers.2.mlp.up_proj.weight": SECOND}),
        rf"index\.json: says that {SECOND} holds the tensor model\.layers\.2\.mlp\.up_proj\.weight",
    ),
    "tensor in no file": (
        lambda m: config(m, num_hidden_layers=3),
        r"the tensor model\.layers\.2\.\S+ of shape \[\d+(, 64)?\] is missing",
    ),
    "superfluous tensors": (lambda m: add(m, "model.layers.0.adapter.weight"), r"1 tensor belongs.*adapter\.weight"),
    "unknown architecture": (
        lambda m: config(m, architectures=["MadeUpForCausalLM"], model_type="made_up"),
        r"MadeUpForCausalLM|made_up",
    ),
    "a quantization that is not read": (
        lambda m: config(m, quantization_config={"quant_method": "gptq", "bits": 3}),
        r"quantized \(gptq\), and transformers cannot load them here: .*requires",
    ),
    "broken config": (lambda m: (m / "config.json").write_text("{"), r"DownloadError.*config\.json cannot be read"),
    "no config": (lambda m: (m / "config.json").unlink(), r"DownloadError.*no config\.json"),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), r"DownloadError.*no tokenizer\.json.*save_pretrained"),
    "broken tokenizer": (lambda m: (m / "tokenizer.json").write_text("{}"), r"tokenizer\.json"),
    "a size that is none": (lambda m: config(m, hidden_size="64"), r"`hidden_size` must be a positive whole number"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_ends_the_start_with_one_sentence(copy: Path, what: str) -> None:
    breaks, sentence = BROKEN[what]
    breaks(copy)
    refused = start(copy)
    assert refused.status == 1, refused.log
    assert refused.sentence.startswith("Error: "), refused.log
    assert re.search(sentence, refused.sentence), refused.log
    assert "Traceback" not in refused.log


@pytest.mark.parametrize("what", ["truncated file", "wrong shape"])
def test_two_shards_end_together(copy: Path, what: str) -> None:
    breaks, sentence = BROKEN[what]
    breaks(copy)
    refused = start(copy, "--num-shard", "2")
    assert refused.status == 1
    assert re.search(sentence, refused.sentence), refused.log


def test_heads_that_do_not_divide_are_told_with_the_numbers(base: Path) -> None:
    refused = start(base, "--num-shard", "3")
    assert refused.status == 1
    assert re.search(r"4 attention heads do not divide over 3 shards; .*--num-shard", refused.sentence), refused.log
