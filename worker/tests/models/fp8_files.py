"""Checkpoints whose matrices are float8 in blocks, as DeepSeek V3 is published, and what they say in float32."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoints import Saved

MOST = 448.0  # of float8_e4m3fn
KEPT = ("embed", "lm_head", "gate.weight", "router")  # what is not published in float8


def rewritten(source: Saved, plain: Path, packed: Path, block: tuple[int, int]) -> Path:
    """The checkpoint with its linear layers in float8, in `packed`; in `plain`, which is returned, what they say."""
    for folder in (plain, packed):
        folder.mkdir()
        for path in source.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    stored, said = dict(load_file(source.folder / "model.safetensors")), {}
    for name, tensor in list(stored.items()):
        said[name] = tensor
        if tensor.ndim > 1 and not any(each in name for each in KEPT):
            stored[name], stored[f"{name}_scale_inv"], said[name] = in_blocks(tensor, block)
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    save_file(said, plain / "model.safetensors", metadata={"format": "pt"})
    state(packed, weight_block_size=list(block))
    return plain


def state(folder: Path, **quantization: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    stated = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    config["quantization_config"] = stated | quantization
    (folder / "config.json").write_text(json.dumps(config))


def in_blocks(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of [..., N, K]: values in float8, factors [..., blocks of N, blocks of K], and what both say, element by element:
    blocks at the end have fewer rows or columns."""
    rows, columns = (torch.arange(size) // each for size, each in zip(weight.shape[-2:], block, strict=True))
    most = torch.zeros(*weight.shape[:-2], int(rows[-1]) + 1, int(columns[-1]) + 1)
    for row in range(most.shape[-2]):
        for column in range(most.shape[-1]):
            inside = weight[..., rows == row, :][..., columns == column]
            most[..., row, column] = inside.abs().amax((-1, -2))
    factors = most / MOST
    spread = factors[..., rows, :][..., columns]
    values = (weight / spread).to(torch.float8_e4m3fn)
    return values, factors, values.float() * spread
