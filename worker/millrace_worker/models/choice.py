"""Who computes a model: the decoder by spec ("native") where there is a spec, else transformers' own code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from millrace_worker.distributed import Group
from millrace_worker.model import Model
from millrace_worker.models.architectures import ENCODER_DECODERS, describe, describe_encoder_decoder, family_of
from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError
from millrace_worker.models.load import load_native
from millrace_worker.models.quantization import Fp8Blocks
from millrace_worker.models.scaling import Stretch

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine

NATIVE, TRANSFORMERS = "native", "transformers"


@dataclass(frozen=True)
class Choice:
    implementation: str
    reason: str
    lacks: str = ""  # what there is a spec for, but for this


@dataclass(frozen=True, kw_only=True)
class ModelAsk:
    """Which model, and how. `kernels`: what `cpu_kernels.find` answered."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    group: Group
    kernels: Machine | None = None
    trust_remote_code: bool = False
    stretch: Stretch | None = None


def choose(folder: Path, model_impl: str, stretch: Stretch | None = None) -> Choice:
    """`model_impl`: auto, native or transformers. `stretch` is something that only the native decoder does.

    Raises ConfigError for a broken configuration, and UnsupportedError for `native` where there is no spec. An encoder
    and a decoder are always native.
    """
    if model_impl == TRANSFORMERS:
        _refuse(stretch)
        return Choice(TRANSFORMERS, "--model-impl asks for it")
    config = ModelConfig.read(folder)
    try:
        check_described(config, stretch)
    except UnsupportedError as error:
        if config.architecture in ENCODER_DECODERS:
            raise
        if model_impl == NATIVE:
            raise UnsupportedError(f"{error}; --model-impl transformers may run it") from error
        _refuse(stretch)
        return Choice(TRANSFORMERS, str(error), str(error) if family_of(config) else "")
    also = "; its fp8 weights are dequantized at load" if Fp8Blocks.stated(config) else ""
    return Choice(NATIVE, f"there is a spec of {config.architecture}{also}")


def _refuse(stretch: Stretch | None) -> None:
    if stretch is not None:
        raise ConfigError("--rope-scaling and --rope-factor need the native decoder; set rope_scaling in config.json")


def check_described(config: ModelConfig, stretch: Stretch | None) -> None:
    """Raises UnsupportedError where there is no spec, ConfigError for a broken configuration."""
    if config.architecture in ENCODER_DECODERS:
        _refuse(stretch)
        describe_encoder_decoder(config)
    else:
        describe(config, stretch)


def load(ask: ModelAsk, choice: Choice) -> Model:
    """The model, loaded. Raises ValueErrors that name the file or the field and what was expected."""
    if choice.implementation == NATIVE:
        own = {"dtype": ask.dtype, "device": ask.device, "group": ask.group, "kernels": ask.kernels}
        return load_native(ask.folder, stretch=ask.stretch, **own)
    from millrace_worker.models.hosted.library import HostedAsk
    from millrace_worker.models.hosted.load import load_hosted

    hosted = HostedAsk(
        folder=ask.folder,
        dtype=ask.dtype,
        device=ask.device,
        group=ask.group,
        trust_remote_code=ask.trust_remote_code,
    )
    try:
        return load_hosted(hosted, ask.kernels)
    except ConfigError as error:
        if not choice.lacks:
            raise
        raise ConfigError(f"{choice.lacks}, and by transformers it cannot be served either: {error}") from error
