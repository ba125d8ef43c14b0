"""Tiny random checkpoints of every case, made and saved by transformers as their families store them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zlib import crc32

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .cases import CASES, COMMON, VOCAB, Case

__all__ = ["CASES", "VOCAB", "Case", "Saved", "save"]


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk and transformers' model of it, float32."""

    folder: Path
    reference: PreTrainedModel

    @cached_property
    def _known(self) -> dict[tuple[int, ...], torch.Tensor]:
        return {}

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """[len, VOCAB], computed once for each sequence."""
        key = tuple(tokens)
        if key not in self._known:
            self._known[key] = self.reference(torch.tensor([tokens])).logits[0]
        return self._known[key]


def save(folder: Path, case: Case) -> Saved:
    """Every parameter is random, norms and biases too: none may be left out unnoticed."""
    names = CONFIG_MAPPING[case.model_type].attribute_map
    values = {names.get(key, key): value for key, value in {**COMMON, **case.over}.items()}
    config = AutoConfig.for_model(case.model_type, **values)
    torch.manual_seed(crc32(repr((case.model_type, dict(case.over))).encode()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=case.reference).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.ndim == 1 or name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor), alpha=0.2)
    model.save_pretrained(folder)
    _rename(folder / "model.safetensors", case)
    return Saved(folder, model)


def _rename(path: Path, case: Case) -> None:
    if not case.stored:
        return
    stored = {}
    for name, tensor in load_file(path).items():
        for pattern, replacement in case.stored:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        assert name not in stored, name
        stored[name] = tensor
    save_file(stored, path, metadata={"format": "pt"})
