"""Checkpoints of GPTQ and AWQ, packed code by code as their formats are described, and what they say in float32."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from .checkpoints import Saved

# Matrices inside of layers, but for routers and norms.
LINEAR = re.compile(r"(layers|h|blocks)\.\d+\.(?!.*(norm|ln_|router|\bgate\.weight)).*\.weight$")
CONV1D = ("c_attn", "c_proj", "c_fc")  # GPT-2 has them the other way round
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Form:
    """`group` -1: one of all inputs. `ordered`: the inputs of a group are anywhere (GPTQ's desc_act)."""

    method: str
    group: int = 16
    bits: int = 4
    symmetric: bool = False
    version: str = ""  # GPTQ's, or AWQ's
    ordered: bool = False
    zero_biases: bool = False  # of layers that have none, as AutoGPTQ stores them
    kept: str = "nothing"  # a pattern of linear layers that stay plain

    def stated(self) -> dict[str, Any]:
        common = {"quant_method": self.method, "bits": self.bits, "group_size": self.group}
        if self.method == "awq":
            return common | {"zero_point": True, "version": self.version or "gemm", "modules_to_not_convert": None}
        return common | {
            "checkpoint_format": self.version or "gptq",
            "desc_act": self.ordered,
            "sym": self.symmetric,
            "lm_head": False,
        }


@dataclass(frozen=True)
class Rounded:
    """A matrix in groups: whole numbers [in, out], scales and zeros [groups, out], and the group of each input."""

    codes: np.ndarray
    scales: np.ndarray  # float16
    zeros: np.ndarray
    groups: np.ndarray

    def said(self) -> Tensor:
        """float32 [out, in]."""
        scales, zeros = self.scales.astype(np.float32)[self.groups], self.zeros[self.groups]
        return torch.from_numpy((scales * (self.codes - zeros).astype(np.float32)).T.copy())


def rounded(weight: Tensor, form: Form, seed: int) -> Rounded:
    """`weight` is [out, in]. Every code up to the greatest of each group occurs in it."""
    values, most = weight.numpy().T.astype(np.float64), 2**form.bits - 1
    inputs = len(values)
    size = inputs if form.group < 0 else form.group
    groups = np.arange(inputs) // size
    if form.ordered:
        groups = np.random.default_rng(seed).permutation(groups)
    count = int(groups.max()) + 1
    scales, zeros = (np.zeros((count, values.shape[1])) for _ in range(2))
    for group in range(count):
        inside = values[groups == group]
        low, high = np.minimum(inside.min(0), 0), np.maximum(inside.max(0), 0)
        if form.symmetric:
            scales[group] = 2 * np.maximum(-low, high) / most
            zeros[group] = (most + 1) // 2
        else:
            scales[group] = (high - low) / most
            zeros[group] = np.round(-low / scales[group])
    scales = scales.astype(np.float16)
    if form.method == "gptq" and form.version != "gptq_v2":
        zeros = np.maximum(zeros, 1)  # less 1 they would be below 0
    spread = scales.astype(np.float64)[groups]
    codes = np.clip(np.round(values / spread) + zeros[groups], 0, most)
    return Rounded(codes.astype(np.int64), scales, zeros.astype(np.int64), groups)


def packed(matrix: Rounded, form: Form) -> dict[str, Tensor]:
    """The tensors of a linear layer, without its path."""
    zeros = matrix.zeros
    if form.method == "awq":
        qweight, qzeros = along_outputs(matrix.codes, AWQ_ORDER, 4), along_outputs(zeros, AWQ_ORDER, 4)
    else:
        per_word = 32 // form.bits
        stored = zeros if form.version == "gptq_v2" else zeros - 1
        qweight = along_outputs(matrix.codes.T, range(per_word), form.bits).T
        qzeros = along_outputs(stored, range(per_word), form.bits)
    found = {"qweight": qweight, "qzeros": qzeros, "scales": matrix.scales}
    if form.method == "gptq":
        found["g_idx"] = matrix.groups.astype(np.int32)
    return {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in found.items()}


def along_outputs(numbers: np.ndarray, order: Any, bits: int) -> np.ndarray:
    """int32 [rows, columns * bits / 32]: of each stretch of columns, that which `order` names first is lowest."""
    per_word = 32 // bits
    words = np.zeros((len(numbers), numbers.shape[1] // per_word), dtype=np.uint32)
    for word in range(words.shape[1]):
        for place, column in enumerate(order):
            words[:, word] |= numbers[:, word * per_word + column].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def rewritten(source: Saved, folder: Path, form: Form) -> Saved:
    """The checkpoint with its linear layers in `form`, beside transformers' model of what that says."""
    plain, quantized = folder / "plain", folder / "packed"
    for each in (plain, quantized):
        each.mkdir()
        (each / "config.json").write_text((source.folder / "config.json").read_text())
    stored, said = {}, {}
    for name, tensor in load_file(source.folder / "model.safetensors").items():
        said[name] = tensor
        if tensor.ndim != 2 or not LINEAR.search(name) or re.search(form.kept, name):
            stored[name] = tensor
            continue
        path = name.removesuffix(".weight")
        is_transposed = path.endswith(CONV1D)
        matrix = rounded(tensor.T if is_transposed else tensor, form, crc32(path.rpartition(".")[0].encode()))
        said[name] = (matrix.said().T if is_transposed else matrix.said()).contiguous()
        stored |= {f"{path}.{leaf}": each for leaf, each in packed(matrix, form).items()}
        if form.zero_biases:
            stored.setdefault(f"{path}.bias", torch.zeros(matrix.codes.shape[1], dtype=torch.float16))
    assert any(name.endswith(".qweight") for name in stored)
    save_file(stored, quantized / "model.safetensors", metadata={"format": "pt"})
    save_file(said, plain / "model.safetensors", metadata={"format": "pt"})
    state(quantized, form.stated())
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    return Saved(quantized, reference)


def state(folder: Path, quantization: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
