"""A checkpoint's `config.json`, in the styles that transformers 4 and 5 write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What transformers calls the same thing in another family or version.
ALIASES = {
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length", "model_max_length"),
    "num_kv_heads": ("n_head_kv",),
    "num_local_experts": ("num_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("moe_k",),
}


# Where older checkpoints of GPTQ and AWQ say what `quantization_config` says in others.
QUANTIZATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}

# Ends of the names of fields that must be numbers above zero.
POSITIVE = ("eps", "epsilon")


class ConfigError(ValueError):
    """The configuration is missing, broken, or asks for something that is not implemented; the message says which."""


class UnsupportedError(ConfigError):
    """The configuration is in order, but the decoder by spec does not compute what it asks for."""


class ModelConfig:
    """The fields of `config.json` as attributes; a field that is absent has its family's default.

    An explicit null stays None: it means "off" (`sliding_window`), where an absent field means the default.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self._values = values
        self._defaults = defaults or {}

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """Raises ConfigError when there is no readable `config.json` in `folder`."""
        values = _read_object(folder / "config.json")
        if "quantization_config" not in values:
            for name, method in QUANTIZATION_FILES.items():
                if (folder / name).is_file():
                    return cls(values | {"quantization_config": {"quant_method": method} | _read_object(folder / name)})
        return cls(values)

    def with_defaults(self, defaults: Mapping[str, Any]) -> ModelConfig:
        return ModelConfig(self._values, defaults)

    def part(self, name: str) -> ModelConfig:
        """The configuration of a part of the model, an object within the file."""
        values = getattr(self, name)
        if not isinstance(values, Mapping):
            raise ConfigError(f"config.json: `{name}` must be an object, not {values!r}")
        return ModelConfig(values)

    def __contains__(self, name: str) -> bool:
        """Whether the file itself states the field under this name."""
        return name in self._values

    @property
    def architecture(self) -> str:
        """The class name that the checkpoint was saved from, for example LlamaForCausalLM; where that is not said, the
        `model_type`, for example llama."""
        stated = self._values.get("architectures")
        names: list[Any] = stated or [self._values.get("model_type")]
        if len(names) != 1 or not isinstance(names[0], str):
            raise ConfigError(f"config.json: `architectures` must name one class, not {stated!r}")
        return names[0]

    @property
    def dtype(self) -> str | None:
        """The dtype that the weights were saved in, for example bfloat16; None when it is not stated."""
        stated = self._values.get("dtype") or self._values.get("torch_dtype")
        return str(stated).removeprefix("torch.") if stated else None

    def __getattr__(self, name: str) -> Any:
        if name in ("_values", "_defaults") or name.startswith("__"):
            raise AttributeError(name)
        stated = self._stated(name)
        if stated is not None:
            _check_kind(stated, self._values[stated], self._defaults.get(name))
            return self._values[stated]
        if name in self._defaults:
            return self._defaults[name]
        raise ConfigError(f"config.json: `{name}` is missing")

    def _stated(self, name: str) -> str | None:
        """The name under which the file has the field, if it has it."""
        return next((key for key in (name, *ALIASES.get(name, ())) if key in self._values), None)

    def get(self, name: str, default: Any = None) -> Any:
        """As attribute access, but an absent field that has no default of its family is `default`."""
        known = self._stated(name) is not None or name in self._defaults
        return getattr(self, name) if known else default

    def positive(self, name: str) -> float:
        """A field that must be a number above zero."""
        value = getattr(self, name)
        if not _is_number(value) or value <= 0:
            raise ConfigError(f"config.json: `{name}` must be a number above 0, not {value!r}")
        return value

    def size(self, name: str) -> int:
        """A field that must be a positive whole number."""
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            stated = self._stated(name) or name
            raise ConfigError(f"config.json: `{stated}` must be a positive whole number, not {value!r}")
        return value

    def rope_parameters(self, layer_type: str | None = None) -> dict[str, Any]:
        """`rope_type`, `rope_theta`, `partial_rotary_factor` and what the type needs, whichever way they were written.

        transformers 5 nests all in `rope_parameters`, in some families for each layer type; 4 has `rope_theta` and
        `rope_scaling` side by side, GPT-NeoX `rotary_emb_base` and `rotary_pct`. Families that tell layer types apart
        name one: there `rope_scaling` means full attention, and `rope_local_base_freq` is the theta of sliding windows.
        """
        nested, theta = (
            self._values.get("rope_parameters"),
            self.get("rope_theta", self.get("rotary_emb_base", 10000.0)),
        )
        for name, stated in (("rope_parameters", nested), ("rope_scaling", self.get("rope_scaling"))):
            if stated is not None and not isinstance(stated, Mapping):
                raise ConfigError(f"config.json: `{name}` must be an object, not {stated!r}")
        if nested is not None:
            found = self._of_layers(nested, layer_type)
        elif layer_type == "sliding_attention":
            found, theta = {}, self.get("rope_local_base_freq", theta)
        else:
            found = dict(self.get("rope_scaling") or {})
        found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
        found.setdefault("rope_theta", theta)
        found.setdefault("partial_rotary_factor", self.get("partial_rotary_factor", self.get("rotary_pct", 1.0)))
        return found

    def _of_layers(self, nested: Mapping[str, Any], layer_type: str | None) -> dict[str, Any]:
        kinds = {name: value for name, value in nested.items() if name.endswith("_attention")}
        if not kinds:
            return dict(nested)
        chosen = kinds.get(layer_type) if layer_type else None
        if layer_type is None and all(value == next(iter(kinds.values())) for value in kinds.values()):
            chosen = next(iter(kinds.values()))
        if not isinstance(chosen, dict):
            wanted = f"of {layer_type} layers" if layer_type else "that are the same in all layers"
            raise ConfigError(f"config.json: `rope_parameters` {wanted} are needed; it has those of {', '.join(kinds)}")
        return dict(chosen)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a model's folder holds config.json and its weights") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, not an object")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_kind(name: str, value: Any, default: Any) -> None:
    """What a file states has to be of its default's kind: a number, or true or false. What null means is for the
    family to say. Raises ConfigError."""
    if name.endswith(POSITIVE) and (not _is_number(value) or value <= 0):
        raise ConfigError(f"config.json: `{name}` must be a number above 0, not {value!r}")
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    else:
        fits, kind = _is_number(value) or not isinstance(default, int | float), "a number"
    if value is not None and not fits:
        raise ConfigError(f"config.json: `{name}` must be {kind}, not {value!r}")
