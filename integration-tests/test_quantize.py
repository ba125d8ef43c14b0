"""`--quantize` through the real launcher: answers are those of the rounded weights, and the worker is smaller."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import httpx
import pytest
import streams
from conftest import Launch, Server
from safetensors.torch import load_file, save_file

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 8192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LIMITS = ("--dtype", "float32", "--max-total-tokens", "256", "--max-input-tokens", "128")
LINEAR = re.compile(r"layers\.\d+\..*proj\.weight$")


def round_weights(source: Path, folder: Path) -> int:
    """Copies a checkpoint with its linear layers in steps of a 127th of each output's greatest value; their values."""
    shutil.copytree(source, folder)
    tensors, count = load_file(source / "model.safetensors"), 0
    for name in filter(LINEAR.search, list(tensors)):
        step = tensors[name].abs().amax(dim=1, keepdim=True) / 127
        tensors[name], count = (tensors[name] / step).round() * step, count + tensors[name].numel()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return count


def held_bytes(server: Server) -> int:
    """What the worker holds in memory of its own: files that are mapped do not count."""
    (worker,) = server.children("millrace_worker")
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def test_answers_of_the_rounded_weights_in_less_memory(tmp_path: Path, launch: Launch) -> None:
    source = checkpoints.make(tmp_path / "whole", **SIZES)
    count = round_weights(source, tmp_path / "rounded")
    quantized = launch(source, *LIMITS, "--quantize", "eetq")
    rounded = launch(tmp_path / "rounded", *LIMITS)
    models = [httpx.get(f"{server.url}/info", timeout=10).json()["model"] for server in (quantized, rounded)]
    assert [each["implementation"] for each in models] == ["native (eetq)", "native"]
    requests = streams.mixed_requests(6, new_tokens=24)
    assert streams.crowd_ids(quantized.url, requests) == streams.crowd_ids(rounded.url, requests)
    wanted, found, whole = (
        [token["logprob"] for token in answer["details"]["prefill"][1:]]
        for answer in (
            each.generate("a quick brown fox", max_new_tokens=1, details=True, decoder_input_details=True)
            for each in (rounded, quantized, launch(source, *LIMITS))
        )
    )
    assert found == pytest.approx(wanted, abs=1e-3)
    assert found != pytest.approx(whole, abs=1e-3), "the weights are not quantized"
    # Of 4 bytes for each weight nearly 3 are saved; what loading leaves with the allocator is not the same each time.
    assert held_bytes(rounded) - held_bytes(quantized) > 1.5 * count
