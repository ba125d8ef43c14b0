"""From a folder to a running model: read the configuration, build the spec's operators over this rank's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from millrace_worker.distributed import Group
from millrace_worker.layers.operators import choose_operators
from millrace_worker.models import spec as kinds
from millrace_worker.models.architectures import ENCODER_DECODERS, describe
from millrace_worker.models.build.ends import build_ends
from millrace_worker.models.build.layer import build_layer, layer_heads
from millrace_worker.models.build.parts import Parts
from millrace_worker.models.checkpoint import Checkpoint
from millrace_worker.models.decoder import CausalLM
from millrace_worker.models.encoder_decoder.load import load_encoder_decoder
from millrace_worker.models.encoder_decoder.model import EncoderDecoderModel
from millrace_worker.models.fp8 import Fp8Checkpoint
from millrace_worker.models.hf_config import ModelConfig
from millrace_worker.models.names import Names
from millrace_worker.models.quantization import Fp8Blocks
from millrace_worker.models.recurrent.load import load_recurrent
from millrace_worker.models.recurrent.model import RecurrentLM
from millrace_worker.models.recurrent.spec import Recurrent
from millrace_worker.models.scaling import Stretch
from millrace_worker.models.sharding import Rank
from millrace_worker.models.weights import Weights

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine


def load_native(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    group: Group,
    kernels: Machine | None = None,
    stretch: Stretch | None = None,
) -> CausalLM | RecurrentLM | EncoderDecoderModel:
    """Loads this rank's part of the checkpoint in `path`. `kernels`: what `cpu_kernels.find` answered; `stretch`: of
    its positions, instead of what the configuration says.

    Raises ConfigError (the configuration), CheckpointError (the weights) or ShardingError (the number of ranks), all
    of them ValueErrors whose message names the file and what was expected.
    """
    config = ModelConfig.read(path)
    if config.architecture in ENCODER_DECODERS:
        return load_encoder_decoder(path, dtype=dtype, device=device, group=group, kernels=kernels)
    spec, names = describe(config, stretch)
    blocks = Fp8Blocks.stated(config)
    prefix = names.optional_prefix
    checkpoint = Checkpoint(path, prefix) if blocks is None else Fp8Checkpoint(path, prefix, blocks)
    rank = Rank(group.rank, group.size)
    weights = Weights(checkpoint=checkpoint, rank=rank, dtype=dtype, device=device, transposed=names.transposed)
    frame = spec.frame if isinstance(spec, Recurrent) else spec
    with torch.inference_mode():
        if isinstance(spec, Recurrent):
            model = load_recurrent(spec, names, weights, group, kernels)
        else:
            model = _load(spec, names, weights, group, kernels)
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


def _load(spec: kinds.Decoder, names: Names, weights: Weights, group: Group, kernels: Machine | None) -> CausalLM:
    heads = [layer_heads(names, weights, index, layer.attention) for index, layer in enumerate(spec.layers)]
    operators = choose_operators(kernels, heads, weights.dtype, weights.device)
    parts = Parts(spec, names, weights, group, operators)
    positions = (layer.attention.position for layer in spec.layers)
    rotaries = list(dict.fromkeys(each for each in positions if isinstance(each, kinds.Rotary)))
    ends = build_ends(parts, rotaries)
    return CausalLM(spec, ends, [build_layer(parts, each, rotaries) for each in heads], operators.backend)
