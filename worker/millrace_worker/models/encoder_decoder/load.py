"""From a folder to a running model of an encoder and a decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from millrace_worker.distributed import Group
from millrace_worker.layers.operators import choose_operators
from millrace_worker.models.architectures import describe_encoder_decoder
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.checkpoint import Checkpoint, OnRead, unwatched
from millrace_worker.models.encoder_decoder.build import Builder
from millrace_worker.models.encoder_decoder.model import EncoderDecoderModel
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.sharding import Rank
from millrace_worker.models.weights import Weights

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine


def load_encoder_decoder(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    group: Group,
    kernels: Machine | None = None,
    on_read: OnRead = unwatched,
) -> EncoderDecoderModel:
    """As `models.load.load_model`, for an architecture that is one."""
    config = ModelConfig.read(path)
    spec, names = describe_encoder_decoder(config)
    checkpoint = Checkpoint(path)
    checkpoint.on_read = on_read
    if checkpoint.has(f"{names.decoder.head}.weight"):
        spec = replace(spec, ends=replace(spec.ends, tied=False))
    rank = Rank(group.rank, group.size)
    weights = Weights(checkpoint=checkpoint, rank=rank, dtype=dtype, device=device, transposed=False)
    with torch.inference_mode():
        operators = choose_operators(kernels, (), dtype, device)
        model = Builder(spec, names, Parts(spec.ends, names.decoder, weights, group, operators)).build()
    checkpoint.check_all_read(names.decoder.ignored)
    return model
