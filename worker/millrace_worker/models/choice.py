"""Who computes a model: the decoder by spec ("native") where there is a spec, else transformers' own code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from millrace_worker.distributed import Group
from millrace_worker.model import Model
from millrace_worker.models.architectures import ENCODER_DECODERS, describe, describe_encoder_decoder, family_of
from millrace_worker.models.changes import Changes
from millrace_worker.models.checkpoint import OnRead, unwatched
from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError
from millrace_worker.models.load import Further, load_native
from millrace_worker.models.quantization import Fp8Blocks, PackedCodes
from millrace_worker.models.recurrent.spec import Recurrent

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine

NATIVE, TRANSFORMERS = "native", "transformers"
_LIBRARY = "transformers' own code"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Choice:
    implementation: str
    reason: str
    lacks: str = ""  # what there is a spec for, but for this
    quantization: str = ""  # of the weights that linear layers compute with


@dataclass(frozen=True, kw_only=True)
class ModelAsk:
    """Which model, and how. `kernels`: what `cpu_kernels.find` answered."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    group: Group
    kernels: Machine | None = None
    trust_remote_code: bool = False
    changes: Changes = field(default_factory=Changes)
    on_read: OnRead = unwatched


def choose(folder: Path, model_impl: str, changes: Changes | None = None, device: torch.device = _CPU) -> Choice:
    """`model_impl`: auto, native or transformers.

    Raises ConfigError for a broken configuration, and UnsupportedError for `native` where there is no spec. An encoder
    and a decoder are always native.
    """
    changes = changes or Changes()
    if model_impl == TRANSFORMERS:
        changes.refuse(_LIBRARY)
        if changes.stored is not None:
            changes.check_stored(ModelConfig.read(folder))
        return Choice(TRANSFORMERS, "--model-impl asks for it")
    config = ModelConfig.read(folder)
    changes.check_stored(config)
    try:
        check_described(config, changes)
        check_device(config, device)
    except UnsupportedError as error:
        if config.architecture in ENCODER_DECODERS:
            raise
        if model_impl == NATIVE:
            raise UnsupportedError(f"{error}; --model-impl transformers may run it") from error
        changes.refuse(_LIBRARY)
        return Choice(TRANSFORMERS, str(error), str(error) if family_of(config) else "")
    also = "; its fp8 weights are dequantized at load" if Fp8Blocks.stated(config) else ""
    quantization = changes.quantize or ""
    if codes := PackedCodes.stated(config):
        quantization = codes.method
        also = f"; its weights of {codes.bits} bits ({codes.method}) are computed with as they are"
    also += f"; weights are quantized at load ({changes.quantize})" if changes.quantize else ""
    return Choice(NATIVE, f"there is a spec of {config.architecture}{also}", quantization=quantization)


def check_described(config: ModelConfig, changes: Changes) -> None:
    """Raises UnsupportedError where there is no spec, ConfigError for a broken configuration, or for changes that the
    model does not allow."""
    if config.architecture in ENCODER_DECODERS:
        changes.refuse("an encoder and a decoder")
        describe_encoder_decoder(config)
        return
    spec, _ = describe(config, changes.stretch)
    if isinstance(spec, Recurrent):
        changes.refuse("recurrent layers", stretch=False)
    if changes.quantize is not None and config.get("quantization_config"):
        raise ConfigError(
            f"--quantize {changes.quantize} is for plain weights, and those of this checkpoint are quantized "
            "(`quantization_config` of config.json); leave the flag out"
        )


def check_device(config: ModelConfig, device: torch.device) -> None:
    """Raises UnsupportedError where there is no spec for `device`."""
    codes = PackedCodes.stated(config)
    if codes is not None and device.type != "cpu":
        raise UnsupportedError(
            f"config.json: quantized weights ({codes.method}) are computed natively on CPUs only, not on {device.type}"
        )


def load(ask: ModelAsk, choice: Choice) -> Model:
    """The model, loaded. Raises ValueErrors that name the file or the field and what was expected."""
    if choice.implementation == NATIVE:
        own = {"dtype": ask.dtype, "device": ask.device, "group": ask.group, "kernels": ask.kernels}
        return load_native(ask.folder, further=Further(ask.changes, ask.on_read), **own)
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
