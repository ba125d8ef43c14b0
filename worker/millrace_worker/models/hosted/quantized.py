"""Quantized weights: which of them transformers can load here, and what it makes of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.hosted.bitsandbytes_linear import settle_bitsandbytes
from millrace_worker.models.sharding import ShardingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far served scores may be from the model's own, as in `trial.TOLERANCE`: where activations are rounded to 8 bits
# or to bfloat16, the last bit of a sum becomes a whole step.
TOLERANCE = 0.1
BITSANDBYTES = "bitsandbytes"


@dataclass(frozen=True)
class Quantization:
    """What is known of quantized weights before they are loaded. `dequantized`: they become plain ones at load."""

    method: str
    dequantized: bool

    @property
    def label(self) -> str:
        return f"{self.method}, dequantized at load" if self.dequantized else self.method

    def tolerance(self, of_plain_weights: float) -> float:
        """How far served scores may be from the model's own, where `of_plain_weights` holds for plain ones."""
        return of_plain_weights if self.dequantized else max(of_plain_weights, TOLERANCE)


def stated_quantization(stated: ModelConfig) -> dict[str, Any] | None:
    """`quantization_config`; it may lack its method when it is one of bitsandbytes' first ones. Raises ConfigError."""
    found = stated.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise ConfigError(f"config.json: quantization_config must be an object, not {found!r}")
    return dict(found)


def check_quantization(stated: ModelConfig, device: torch.device, num_ranks: int) -> Quantization | None:
    """None for a checkpoint of plain weights.

    Raises ConfigError, with the method, what it lacks here and what to do, when transformers cannot load it, and
    ShardingError when it would have to be divided.
    """
    config = stated_quantization(stated)
    if config is None:
        return None
    logging.getLogger(BITSANDBYTES).setLevel(logging.ERROR)  # it warns in forward passes, and of kernels to download
    import transformers
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

    method = method_of(config)
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ConfigError(
            f"config.json: the weights are quantized by a method ({method}) that is known neither to Millrace nor to "
            f"transformers {transformers.__version__}: serve the unquantized checkpoint"
        )
    try:
        quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device})
    except Exception as error:
        raise ConfigError(
            f"config.json: the weights are quantized ({method}), and transformers cannot load them here: "
            f"{' '.join(str(error).split())} (or serve the unquantized checkpoint)"
        ) from error
    if num_ranks > 1:
        raise ShardingError(
            f"config.json: the weights are quantized ({method}), and the Transformers backend does not divide such "
            f"weights: --num-shard {num_ranks} is not possible, use --num-shard 1"
        )
    return Quantization(method, bool(getattr(quantizer.quantization_config, "dequantize", False)))


def method_of(config: Mapping[str, Any]) -> str:
    """As transformers tells methods apart."""
    method = config.get("quant_method")
    if config.get("load_in_8bit") or config.get("load_in_4bit"):
        return f"{BITSANDBYTES}_{'4bit' if config.get('load_in_4bit') else '8bit'}"
    return method if isinstance(method, str) else "one that quant_method does not name"


def settle(model: PreTrainedModel, quantization: Quantization, dtype: torch.dtype) -> None:
    """What transformers leaves open: beside quantized weights, the plain ones stay in the checkpoint's dtype."""
    of_bitsandbytes = quantization.method.startswith(BITSANDBYTES)
    if of_bitsandbytes:
        settle_bitsandbytes(model)
    if not of_bitsandbytes and not quantization.dequantized:
        return
    kept = set(model._keep_in_fp32_modules_strict or ())
    if dtype is torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        is_plain = type(parameter) is nn.Parameter and parameter.is_floating_point()
        if is_plain and not any(each in name for each in kept):
            parameter.data = parameter.data.to(dtype)
