"""Weights of 8 bits in blocks, each with a factor, as DeepSeek V3 is published: what the configuration says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millrace_worker.models.hf_config import ConfigError, ModelConfig, UnsupportedError

FP8 = "fp8"
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
