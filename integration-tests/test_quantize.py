"""Quantized weights through the real launcher: answers are those of the rounded weights, and the worker is smaller."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import httpx
import pytest
import streams
import torch
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
GROUP = 128  # inputs that share a scale


def round_weights(source: Path, folder: Path) -> int:
    """Copies a checkpoint with its linear layers in steps of a 127th of each output's greatest value; their values."""
    shutil.copytree(source, folder)
    tensors, count = load_file(source / "model.safetensors"), 0
    for name in filter(LINEAR.search, list(tensors)):
        step = tensors[name].abs().amax(dim=1, keepdim=True) / 127
        tensors[name], count = (tensors[name] / step).round() * step, count + tensors[name].numel()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return count


def pack(source: Path, packed: Path, rounded: Path) -> int:
    """Copies a checkpoint twice: with its linear layers as GPTQ packs them (4 bits, symmetric; codes along the inputs,
    zeros less 1), and with the weights which those stand for; their values."""
    shutil.copytree(source, packed)
    shutil.copytree(source, rounded)
    plain, count = load_file(source / "model.safetensors"), 0
    tensors = dict(plain)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    for name in filter(LINEAR.search, list(plain)):
        grouped = tensors.pop(name).unflatten(1, (-1, GROUP))
        scales = (grouped.abs().amax(dim=2, keepdim=True) / 7).half()
        codes = (grouped / scales.float()).round().clamp(-8, 7)
        plain[name], count = (codes * scales.float()).flatten(1), count + grouped.numel()
        nibbles = (codes.flatten(1).T + 8).to(torch.int32).unflatten(0, (-1, 8))
        inputs, outputs, layer = grouped.shape[1] * GROUP, grouped.shape[0], name.removesuffix("weight")
        tensors[layer + "qweight"] = (nibbles << shifts[:, None]).sum(dim=1, dtype=torch.int32)
        tensors[layer + "qzeros"] = torch.full((inputs // GROUP, outputs // 8), 0x77777777, dtype=torch.int32)
        tensors[layer + "scales"] = scales.squeeze(2).T.contiguous()
        tensors[layer + "g_idx"] = torch.arange(inputs, dtype=torch.int32) // GROUP
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    save_file(plain, rounded / "model.safetensors", {"format": "pt"})
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
    }
    (packed / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return count


def held_bytes(server: Server) -> int:
    """What the worker holds in memory of its own: files that are mapped do not count."""
    (worker,) = server.children("millrace_worker")
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def weights_mib(server: Server) -> float:
    """What the worker says of its weights."""
    found = re.search(r"weights_mib=([\d.]+)", server.output())
    assert found is not None
    return float(found[1])


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


def test_answers_of_what_a_packed_checkpoint_says_in_less_memory(tmp_path: Path, launch: Launch) -> None:
    source = checkpoints.make(tmp_path / "whole", **SIZES)
    count = pack(source, tmp_path / "packed", tmp_path / "rounded")
    packed = launch(tmp_path / "packed", *LIMITS, "--quantize", "gptq")
    rounded = launch(tmp_path / "rounded", *LIMITS)
    assert httpx.get(f"{packed.url}/info", timeout=10).json()["model"]["implementation"] == "native (gptq)"
    requests = streams.mixed_requests(6, new_tokens=24)
    assert streams.crowd_ids(packed.url, requests) == streams.crowd_ids(rounded.url, requests)
    # Of 4 bytes for each weight half a one is left, and a scale of 4 bytes for 128 of them.
    assert weights_mib(rounded) - weights_mib(packed) > 3.4 * count / 2**20
