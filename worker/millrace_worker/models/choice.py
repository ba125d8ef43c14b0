"""Who computes a model: the decoder by spec ("native") where there is a spec, else transformers' own code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from millrace_worker.distributed import Group
from millrace_worker.model import Model
from millrace_worker.models.architectures import describe
from millrace_worker.models.hf_config import ModelConfig, UnsupportedError
from millrace_worker.models.load import load_native

if TYPE_CHECKING:
    from millrace_worker.cpu_kernels import Machine

NATIVE, TRANSFORMERS = "native", "transformers"


@dataclass(frozen=True)
class Choice:
    implementation: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelAsk:
    """Which model, and how. `kernels`: what `cpu_kernels.find` answered."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    group: Group
    kernels: Machine | None = None
    trust_remote_code: bool = False


def choose(folder: Path, model_impl: str) -> Choice:
    """`model_impl`: auto, native or transformers.

    Raises ConfigError for a broken configuration, and for `native` where there is no spec.
    """
    if model_impl == TRANSFORMERS:
        return Choice(TRANSFORMERS, "--model-impl asks for it")
    config = ModelConfig.read(folder)
    try:
        describe(config)
    except UnsupportedError as error:
        if model_impl == NATIVE:
            raise UnsupportedError(f"{error}; --model-impl transformers may run it") from error
        return Choice(TRANSFORMERS, str(error))
    return Choice(NATIVE, f"there is a spec of {config.architecture}")


def load(ask: ModelAsk, choice: Choice) -> Model:
    """The model, loaded. Raises ValueErrors that name the file or the field and what was expected."""
    if choice.implementation == NATIVE:
        return load_native(ask.folder, dtype=ask.dtype, device=ask.device, group=ask.group, kernels=ask.kernels)
    from millrace_worker.models.hosted.library import HostedAsk
    from millrace_worker.models.hosted.load import load_hosted

    hosted = HostedAsk(
        folder=ask.folder,
        dtype=ask.dtype,
        device=ask.device,
        group=ask.group,
        trust_remote_code=ask.trust_remote_code,
    )
    return load_hosted(hosted, ask.kernels)
