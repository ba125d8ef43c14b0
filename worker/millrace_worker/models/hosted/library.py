"""From a folder to a model of transformers: which class, whose code, how it is divided over ranks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from millrace_worker.distributed import Group
from millrace_worker.models.hf_config import ConfigError, ModelConfig
from millrace_worker.models.hosted.quantized import Quantization, settle
from millrace_worker.models.hosted.remote_code import take_code
from millrace_worker.models.sharding import ShardingError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MAX_NAMED = 3  # tensors that an error lists


@dataclass(frozen=True, kw_only=True)
class HostedAsk:
    """What a model of transformers is loaded with."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    group: Group
    trust_remote_code: bool = False


def read_config(ask: HostedAsk) -> PretrainedConfig:
    """Raises ConfigError for a model that transformers does not know, and for code that nobody allowed."""
    _quieten()
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stated = ModelConfig.read(ask.folder)
    model_type, code = stated.get("model_type"), stated.get("auto_map") or {}
    known = _is_known(stated)
    if code and not known and not ask.trust_remote_code:
        raise ConfigError(
            f"the model brings its own code ({', '.join(sorted(_files(code)))}), which would run with the rights of "
            "this server: read it, then start again with --trust-remote-code if you trust it"
        )
    if model_type in CONFIG_MAPPING and getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False):
        raise ConfigError(f"config.json: {model_type} is an encoder-decoder, which the Transformers backend cannot run")
    if not known and not code:
        named = ", ".join(stated.get("architectures") or []) or f"model_type {model_type!r}"
        raise ConfigError(
            f"config.json: {named} is known neither to Millrace nor, as a causal language model, to transformers "
            f"{transformers.__version__}, and the model brings no code of its own"
        )
    missing = [file for file in sorted(_files(code)) if not (ask.folder / file).is_file()] if not known else []
    if missing:
        raise ConfigError(f"config.json: auto_map names {missing[0]}, but there is no such file in {ask.folder}")
    try:
        if not known:
            take_code(ask.folder, _files(code))
        config = AutoConfig.from_pretrained(ask.folder, trust_remote_code=not known, local_files_only=True)
    except Exception as error:
        raise ConfigError(f"config.json: transformers cannot read it: {_first_line(error)}") from error
    if config.is_encoder_decoder:
        raise ConfigError(f"config.json: {model_type} is an encoder-decoder, which the Transformers backend cannot run")
    return config


def _is_known(stated: ModelConfig) -> bool:
    """Whether transformers has the class that the checkpoint was saved from, so that no code of the model's is needed.

    A checkpoint of another class, a classifier say, would be read as a language model with made-up weights.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type, named = stated.get("model_type"), stated.get("architectures") or []
    served = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ())
    served = (served,) if isinstance(served, str) else tuple(served)
    return model_type in CONFIG_MAPPING and bool(served) and (not named or not set(served).isdisjoint(named))


def _files(auto_map: dict[str, Any]) -> set[str]:
    """The modules in the model's folder that `auto_map` names; entries look like modeling_x.ClassName."""
    entries = [each for value in auto_map.values() for each in (value if isinstance(value, list) else [value])]
    return {f"{entry.split('--')[-1].split('.')[0]}.py" for entry in entries if isinstance(entry, str)}


def load_library_model(
    ask: HostedAsk, config: PretrainedConfig, quantization: Quantization | None = None
) -> PreTrainedModel:
    """The whole model, or this rank's part of it, in evaluation mode.

    Raises ConfigError when transformers cannot load it or would make up weights that the checkpoint lacks, and
    ShardingError when it cannot be divided.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {
        "config": config,
        "dtype": ask.dtype,
        "trust_remote_code": ask.trust_remote_code and not _is_known(ModelConfig.read(ask.folder)),
        "local_files_only": True,
        "output_loading_info": True,
    }
    soft_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if soft_capped:
        options["attn_implementation"] = "eager"  # the other one leaves the cap out
    if ask.group.size > 1:
        options["distributed_config"] = _plan(ask.group)
    elif quantization is not None:
        options["device_map"] = ask.device
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(ask.folder, **options)
    except Exception as error:
        what = f"these quantized weights ({quantization.method})" if quantization else "this model"
        raise ConfigError(f"transformers cannot load {what}: {_first_line(error)}") from error
    model, info = loaded
    _check_loaded(model, info)
    if quantization is not None:
        settle(model, quantization, ask.dtype)
    if ask.group.size > 1:
        check_plan(model, ask.group.size)
    if ask.group.size == 1 and quantization is None:
        model.to(ask.device)
    return model.eval()


def _plan(group: Group) -> Any:
    from transformers.distributed.configuration_utils import DistributedConfig

    os.environ.setdefault("LOCAL_RANK", str(group.rank))  # by which transformers chooses this rank's device
    return DistributedConfig(tp_plan="auto", tp_size=group.size)


def _check_loaded(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Weights that the checkpoint lacks would be random numbers: the start ends instead."""
    for problem, names in (("are missing from", info["missing_keys"]), ("do not fit in", info["mismatched_keys"])):
        named = sorted(str(each[0] if isinstance(each, tuple) else each) for each in names)
        if named:
            more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
            raise ConfigError(
                f"tensors of {type(model).__name__} {problem} the checkpoint: {', '.join(named[:MAX_NAMED])}{more}"
            )


def why_undivided(model: PreTrainedModel) -> str:
    """Why no number of ranks can share the model; empty when some may."""
    if not getattr(model, "tp_plan", None):
        return f"{type(model).__name__} has no plan for tensor parallelism in transformers"
    return ""


def check_plan(model: PreTrainedModel, size: int) -> None:
    """Raises ShardingError unless the model has a plan for tensor parallelism that its heads fit."""
    name, reason = type(model).__name__, why_undivided(model)
    if reason:
        raise ShardingError(f"{reason}: use --num-shard 1")
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    for what, number in (("attention heads", heads), ("KV heads", getattr(config, "num_key_value_heads", None))):
        if isinstance(number, int) and number % size:
            raise ShardingError(
                f"{name} has {number} {what}, which --num-shard {size} does not divide, and the Transformers backend "
                "cannot replicate heads"
            )


def _first_line(error: Exception) -> str:
    """Messages of transformers run over many lines; the first says what is wrong."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _quieten() -> None:
    """No progress bars and no advice to developers in a server's log."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
