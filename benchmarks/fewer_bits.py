"""The benchmarks' checkpoints with weights of 8 and 4 bits, made from the plain ones.

`NAME-int8` is the plain checkpoint under another name: every side quantizes it by its own means to 8 bits. `NAME-int4`
is a checkpoint of GPTQ (https://arxiv.org/abs/2210.17323) as its libraries write it: 4 bits in groups of 128 inputs,
symmetric, rounded to nearest; the embedding, the head and the norms stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

GROUP = 128
MIDDLE = 8  # the code of zero
ZEROS = 0x77777777  # eight times MIDDLE, kept as one less
WEIGHTS = "model.safetensors"


def make(folder: Path, plain: Path, form: str) -> None:
    """`folder` from the plain checkpoint `plain`; `form` is `int8` or `int4`."""
    if form == "int8":
        folder.mkdir(parents=True)
        for file in plain.iterdir():
            os.link(file, folder / file.name)
        return
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    stated = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    config["quantization_config"] = stated | {"lm_head": False, "checkpoint_format": "gptq"}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    with safe_open(plain / WEIGHTS, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - it is no dict
            tensors |= packed(name, weights.get_tensor(name))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
    """What stands for a tensor of the plain checkpoint."""
    if weight.ndim != 2 or ".layers." not in name:
        return {name: weight}
    outputs, inputs = weight.shape
    grouped = weight.float().view(outputs, -1, GROUP)
    scales = (grouped.abs().amax(dim=2) / (MIDDLE - 1)).half()
    codes = (grouped / scales.float()[..., None]).round_().add_(MIDDLE).clamp_(0, 15).view(outputs, inputs)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    # Eight codes of following inputs in a number, the first one lowest; all of them differ in their bits, so that the
    # sum is what "or" would give.
    columns = codes.to(torch.int32).T.reshape(inputs // 8, 8, outputs)
    stem = name.removesuffix(".weight")
    return {
        f"{stem}.qweight": (columns << shifts[None, :, None]).sum(dim=1, dtype=torch.int32),
        f"{stem}.qzeros": torch.full((inputs // GROUP, outputs // 8), ZEROS, dtype=torch.int32),
        f"{stem}.scales": scales.T.contiguous(),
        f"{stem}.g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }
