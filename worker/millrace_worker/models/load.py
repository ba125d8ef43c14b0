"""From a folder to a running model: read the configuration, build the spec's operators over this rank's weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from millrace_worker.distributed import Group
from millrace_worker.layers.operators import Operators, choose_operators
from millrace_worker.layers.quantized import Quantizer
from millrace_worker.models import spec as kinds
from millrace_worker.models.architectures import ENCODER_DECODERS, describe
from millrace_worker.models.build.ends import build_ends
from millrace_worker.models.build.layer import build_layer, layer_heads
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.chain import chained
from millrace_worker.models.changes import Changes
from millrace_worker.models.checkpoint import Checkpoint, OnRead, unwatched
from millrace_worker.models.decoder import CausalLM
from millrace_worker.models.encoder_decoder.load import load_encoder_decoder
from millrace_worker.models.encoder_decoder.model import EncoderDecoderModel
from millrace_worker.models.fp8 import Fp8Checkpoint
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.quantization import Fp8Blocks, PackedCodes
from millrace_worker.models.recurrent.load import load_recurrent
from millrace_worker.models.recurrent.model import RecurrentLM
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.sharding import Rank
from millrace_worker.models.weights import Weights
from millrace_worker.placement import is_bound

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine


@dataclass(frozen=True)
class Further:
    """`changes`: those that `choose` agreed to; `on_read` follows the reading of the weights."""

    changes: Changes = field(default_factory=Changes)
    on_read: OnRead = unwatched


def load_native(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    group: Group,
    kernels: Machine | None = None,
    further: Further = Further(),
) -> CausalLM | RecurrentLM | EncoderDecoderModel:
    """Loads this rank's part of the checkpoint in `path`. `kernels`: what `cpu_kernels.find` answered.

    Raises ConfigError (the configuration), CheckpointError (the weights) or ShardingError (the number of ranks), all
    of them ValueErrors whose message names the file and what was expected.
    """
    config = ModelConfig.read(path)
    if config.architecture in ENCODER_DECODERS:
        own = {"dtype": dtype, "device": device, "group": group, "kernels": kernels}
        return load_encoder_decoder(path, on_read=further.on_read, **own)
    spec, names = describe(config, further.changes.stretch)
    blocks = Fp8Blocks.stated(config)
    prefix = names.optional_prefix
    checkpoint = Checkpoint(path, prefix) if blocks is None else Fp8Checkpoint(path, prefix, blocks)
    checkpoint.on_read = further.on_read
    codes = PackedCodes.stated(config)
    rank = Rank(group.rank, group.size, unit=codes.group or 1 if codes else 1)
    weights = Weights(
        checkpoint=checkpoint,
        rank=rank,
        dtype=dtype,
        device=device,
        transposed=names.transposed,
        codes=codes,
    )
    frame = spec.frame if isinstance(spec, Recurrent) else spec
    with torch.inference_mode():
        if isinstance(spec, Recurrent):
            model = load_recurrent(spec, names, weights, group, kernels)
        else:
            quantizer = Quantizer(group) if further.changes.quantize else None
            operators = partial(choose_operators, kernels, quantizer=quantizer)
            model = _load(spec, names, weights, group, operators)
            # Torch computes next to nothing in a step, so its threads need not be shared. But who is bound to cores is
            # bound to them as OpenMP's thread.
            if kernels is not None and model.chain is not None and not is_bound(os.environ):
                kernels.start_helpers()
    # A tied head may be stored all the same; the embedding is what counts.
    tied = (f"{names.head}.weight",) if frame.tied else ()
    checkpoint.check_all_read(names.ignored + tied)
    return model


def load_model(
    path: Path, *, dtype: torch.dtype, device: torch.device, group: Group, kernels: Machine | None = None
) -> CausalLM:
    """`load_native` of a decoder with attention, which it must be."""
    model = load_native(path, dtype=dtype, device=device, group=group, kernels=kernels)
    if not isinstance(model, CausalLM):
        raise TypeError(f"{path} holds a model without attention")
    return model


def _load(
    spec: kinds.Decoder, names: Names, weights: Weights, group: Group, make: Callable[..., Operators]
) -> CausalLM:
    """`make` is `choose_operators` of some kernels."""
    heads = [layer_heads(names, weights, index, layer.attention) for index, layer in enumerate(spec.layers)]
    operators = make(heads, weights.dtype, weights.device)
    parts = Parts(spec, names, weights, group, operators)
    positions = (layer.attention.position for layer in spec.layers)
    rotaries = list(dict.fromkeys(each for each in positions if isinstance(each, kinds.Rotary)))
    ends = build_ends(parts, rotaries)
    layers = [build_layer(parts, each, rotaries) for each in heads]
    return CausalLM(spec, ends, layers, operators.backend, chained(layers, ends, operators.backend))
