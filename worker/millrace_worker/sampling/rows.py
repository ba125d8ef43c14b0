"""The sampling parameters of the rows, as columns on the host: what a step needs is gathered from them."""

from __future__ import annotations

import math
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from millrace_worker.sampling.noise import Noise
from millrace_worker.sampling.watermark import Watermark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millrace_worker.proto import worker_pb2


class Feature(IntFlag):
    """What a row asks for beyond the argmax of its raw scores."""

    WATERMARK = 1
    REPETITION = 2
    FREQUENCY = 4
    OUTPUT_COUNTS = 8  # presence or count penalty
    TEMPERATURE = 16
    TOP_K = 32
    TOP_P = 64
    TYPICAL_P = 128
    MIN_P = 256
    SAMPLE = 512
    TOP_TOKENS = 1024


# Parameters that are numbers: name, what is allowed, its test, and the feature that a value other than `off` turns on.
_POSITIVE = ("above 0", lambda value: 0 < value < math.inf)
_SHARE = ("above 0 and at most 1", lambda value: 0 < value <= 1)
_ANY = ("a finite number", math.isfinite)
_NUMBERS: dict[str, tuple[tuple[str, Callable[[float], bool]], float, Feature]] = {
    "temperature": (_POSITIVE, 1.0, Feature.TEMPERATURE),
    "top_p": (_SHARE, 1.0, Feature.TOP_P),
    "typical_p": (_SHARE, 1.0, Feature.TYPICAL_P),
    "min_p": (("from 0 to 1", lambda value: 0 <= value <= 1), 0.0, Feature.MIN_P),
    "repetition_penalty": (_POSITIVE, 1.0, Feature.REPETITION),
    "frequency_penalty": (_ANY, 0.0, Feature.FREQUENCY),
    "presence_penalty": (_ANY, 0.0, Feature.OUTPUT_COUNTS),
    "count_penalty": (_ANY, 0.0, Feature.OUTPUT_COUNTS),
}


class SamplingRows:
    """Parameters per row [max_rows]. `features` is 0 for a row that takes the argmax of its raw scores."""

    def __init__(self, max_rows: int, device: torch.device | str, watermark: Watermark | None = None) -> None:
        self.device = torch.device(device)
        self.watermark = watermark or Watermark()
        self.features = np.zeros(max_rows, dtype=np.int64)
        self.noise = Noise(max_rows, self.device)
        self.top_k = np.zeros(max_rows, dtype=np.int64)
        self.top_n_tokens = np.zeros(max_rows, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(max_rows, dtype=np.int64)
        self._numbers = {name: np.full(max_rows, off, dtype=np.float32) for name, (_, off, _) in _NUMBERS.items()}

    def set(self, row: int, params: worker_pb2.Sampling, num_prompt_tokens: int) -> None:
        """Give `row` its parameters. Raises ValueError, naming the field, and leaves the row as it was."""
        features = Feature(0)
        for name, ((allowed, is_allowed), off, feature) in _NUMBERS.items():
            value = getattr(params, name)
            if not is_allowed(value):
                raise ValueError(f"{name} is {value:g}, but must be {allowed}; {off:g} turns it off")
            if value != off:
                features |= feature
        switches = (
            (params.do_sample, Feature.SAMPLE),
            (params.top_k, Feature.TOP_K),
            (params.watermark, Feature.WATERMARK),
            (params.top_n_tokens, Feature.TOP_TOKENS),
        )
        for is_on, feature in switches:
            features |= feature if is_on else Feature(0)
        for name, column in self._numbers.items():
            column[row] = getattr(params, name)
        self.top_k[row] = params.top_k
        self.top_n_tokens[row] = params.top_n_tokens
        self.num_prompt_tokens[row] = num_prompt_tokens
        self.noise.seed(row, params.seed)
        self.features[row] = features

    def clear(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """These rows use no feature any more."""
        self.features[rows] = 0

    def column(self, name: str, rows: NDArray[np.int64]) -> torch.Tensor:
        """The named number of the rows [S] as float32 [S, 1] on the device."""
        return torch.from_numpy(self._numbers[name][rows]).to(self.device, non_blocking=True)[:, None]
