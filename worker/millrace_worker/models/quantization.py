"""What the configuration says of quantized weights that are read here: of 8 bits in blocks, each with a factor, as
DeepSeek V3 is published, and of 4 or 8 bits in groups, as GPTQ and AWQ make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError

FP8, GPTQ, AWQ = "fp8", "gptq", "awq"
BLOCK = (128, 128)


@dataclass(frozen=True)
class Fp8Blocks:
    """How many rows and columns of a matrix share a factor; those at its end may be fewer."""

    rows: int
    columns: int

    @classmethod
    def stated(cls, config: ModelConfig) -> Fp8Blocks | None:
        """None for a checkpoint whose weights are not of this kind.

        Raises ConfigError where the configuration is wrong, UnsupportedError where it asks for another form of fp8.
        """
        stated = config.get("quantization_config")
        if not isinstance(stated, Mapping) or stated.get("quant_method") != FP8:
            return None
        for name, read in (("fmt", "e4m3"), ("activation_scheme", "dynamic"), ("expert_dtype", FP8)):
            if (found := stated.get(name) or read) != read:
                raise UnsupportedError(
                    f"config.json: there is no spec for quantized weights (fp8 with `{name}` {found!r}; {read} is read)"
                )
        if "weight_block_size" in stated and stated["weight_block_size"] is None:
            raise UnsupportedError("config.json: there is no spec for quantized weights (fp8 without blocks)")
        return cls(*_block(stated.get("weight_block_size", BLOCK)))

    def count(self, rows: int, columns: int) -> tuple[int, int]:
        """How many blocks a matrix has, down and across."""
        return -(-rows // self.rows), -(-columns // self.columns)

    def touched(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """The blocks of which a part of a matrix takes something."""
        return _touched(rows, self.rows), _touched(columns, self.columns)


def _touched(part: slice, size: int) -> slice:
    return slice(part.start // size, -(-part.stop // size))


def _block(found: Any) -> tuple[int, int]:
    match found:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case other:
            raise ConfigError(
                "config.json: `weight_block_size` of `quantization_config` must be two positive whole numbers, "
                f"not {other!r}"
            )


@dataclass(frozen=True)
class PackedCodes:
    """Codes of 4 or 8 bits, several in an int32, as checkpoints of GPTQ and AWQ hold them."""

    method: str
    bits: int
    group: int | None  # inputs that share a scale; None: all of them
    zeros_less_one: bool = False  # how zeros are stored

    @classmethod
    def stated(cls, config: ModelConfig) -> PackedCodes | None:
        """None for a checkpoint whose weights are not of this kind.

        Raises ConfigError where the configuration is wrong, UnsupportedError where it asks for another form of these.
        """
        match config.get("quantization_config"):
            case {"quant_method": "gptq"} as stated:
                return _gptq(stated)
            case {"quant_method": "awq"} as stated:
                return _awq(stated)
        return None


def _gptq(stated: Mapping[str, Any]) -> PackedCodes:
    """As AutoGPTQ and GPTQModel write it. Whether inputs have an order of their own (`desc_act`) is in the tensors."""
    form = stated.get("checkpoint_format") or stated.get("format") or GPTQ
    _check(GPTQ, "checkpoint_format", form, (GPTQ, "gptq_v2"))
    _check(GPTQ, "is_marlin_format", stated.get("is_marlin_format") or False, (False,))
    _check(GPTQ, "pack_dtype", stated.get("pack_dtype") or "int32", ("int32",))
    _check(GPTQ, "lm_head", stated.get("lm_head") or False, (False,))
    others = stated.get("dynamic") or {}
    if not isinstance(others, Mapping):
        raise ConfigError(f"config.json: `dynamic` of `quantization_config` must be an object, not {others!r}")
    # A layer that is left out is one without codes.
    if not all(name.startswith("-:") for name in others):
        raise UnsupportedError(
            "config.json: there is no spec for quantized weights (gptq whose `dynamic` gives some layers other codes)"
        )
    bits = _whole(stated, "bits", default=4)
    _check(GPTQ, "bits", bits, (4, 8))
    if bits == 8 and stated.get("sym") is False:
        raise UnsupportedError("config.json: there is no spec for quantized weights (gptq of 8 bits that have zeros)")
    return PackedCodes(GPTQ, bits, _group(stated, "group_size"), form == GPTQ)


def _awq(stated: Mapping[str, Any]) -> PackedCodes:
    """As AutoAWQ writes it, in config.json or, with other names, in a file of its own."""
    for name in ("version", "checkpoint_format", "format"):
        _check(AWQ, name, str(stated.get(name) or "gemm").lower(), ("gemm",))
    _check(AWQ, "zero_point", stated.get("zero_point", True), (True,))
    bits = _whole(stated, "w_bit" if "w_bit" in stated else "bits", default=4)
    _check(AWQ, "bits", bits, (4,))
    return PackedCodes(AWQ, bits, _group(stated, "q_group_size" if "q_group_size" in stated else "group_size"))


def _check(method: str, name: str, found: Any, read: tuple[Any, ...]) -> None:
    if found not in read:
        expected = ", ".join(str(each) for each in read)
        raise UnsupportedError(
            f"config.json: there is no spec for quantized weights ({method} with `{name}` {found!r}; read: {expected})"
        )


def _group(stated: Mapping[str, Any], name: str) -> int | None:
    size = _whole(stated, name, default=128)
    if size == 0 or size < -1:
        raise ConfigError(f"config.json: `{name}` of `quantization_config` must be above 0, or -1, not {size}")
    return None if size < 0 else size


def _whole(stated: Mapping[str, Any], name: str, default: int) -> int:
    found = stated.get(name, default)
    if not isinstance(found, int) or isinstance(found, bool):
        raise ConfigError(f"config.json: `{name}` of `quantization_config` must be a whole number, not {found!r}")
    return found
