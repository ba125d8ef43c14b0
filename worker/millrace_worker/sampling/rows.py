"""The sampling parameters of the rows, as columns on the host: what a step needs is gathered from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from millrace_worker.sampling.blocks import Blocks, Feature, make_blocks
from millrace_worker.sampling.counts import TokenCounts
from millrace_worker.sampling.edits import ScoreEdits
from millrace_worker.sampling.native import NativeSampler
from millrace_worker.sampling.noise import Noise
from millrace_worker.sampling.watermark import Watermark
from millrace_worker.sampling.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millrace_kernels import Machine

    from millrace_worker.proto import worker_pb2


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
# A score divided by less, or multiplied by more, may be infinite; this is beyond what any use has for it.
REPETITION_LIMIT = 1e30


class SamplingRows:
    """Parameters per row [max_rows]. `features` is 0 for a row that takes the argmax of its raw scores.

    `numbers`: the parameters that are numbers, float32 by name. `version` changes with any parameter.
    """

    def __init__(
        self,
        max_rows: int,
        device: torch.device | str,
        watermark: Watermark | None = None,
        kernels: Machine | None = None,
    ) -> None:
        """`kernels`: what `cpu_kernels.find` answered; they sample where there are any."""
        self.device = torch.device(device)
        self.watermark = watermark or Watermark()
        self.native = None if kernels is None else NativeSampler(kernels, self.watermark)
        self.workspace = Workspace(self.device)
        self.noise = Noise(max_rows, self.device)
        self.counts = TokenCounts(max_rows, self.device)
        self.edits = ScoreEdits(max_rows, self.device)
        self.features = np.zeros(max_rows, dtype=np.int64)
        self.top_k = np.zeros(max_rows, dtype=np.int64)
        self.top_n_tokens = np.zeros(max_rows, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(max_rows, dtype=np.int64)
        self.numbers = {name: np.full(max_rows, off, dtype=np.float32) for name, (_, off, _) in _NUMBERS.items()}
        self.version = 0
        self._blocks: Blocks | None = None

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
        self.edits.set(row, params, num_prompt_tokens)
        for name, column in self.numbers.items():
            column[row] = getattr(params, name)
        penalties = self.numbers["repetition_penalty"]
        penalties[row] = penalties[row].clip(1 / REPETITION_LIMIT, REPETITION_LIMIT)
        self.top_k[row] = params.top_k
        self.top_n_tokens[row] = params.top_n_tokens
        self.num_prompt_tokens[row] = num_prompt_tokens
        self.noise.seed(row, params.seed)
        self.counts.forget(row)
        self.features[row] = features
        self.version += 1

    def clear(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """These rows use no feature any more."""
        self.features[rows] = 0
        self.edits.clear(rows)
        self.version += 1

    def blocks(self, rows: NDArray[np.int64], vocab_size: int) -> Blocks:
        """How these rows [R] are sampled; the same object as long as neither they nor their parameters change."""
        known = self._blocks
        if (
            known is None
            or known.version != self.version
            or known.vocab_size != vocab_size
            or not np.array_equal(known.rows, rows)
        ):
            known = self._blocks = make_blocks(self, rows, vocab_size)
        return known

    def upload(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)
