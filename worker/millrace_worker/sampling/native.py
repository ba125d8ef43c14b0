"""Sampling by this CPU's kernels: all rows of a step in one call, with the numbers that `sampler` has by torch.

Exponentials and logarithms may differ in their last bit, so that of a million drawn tokens one may be another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling.blocks import NARROWING, PENALTIES, Feature
from millrace_worker.sampling.choice import Sampled, TopTokens
from millrace_worker.sampling.context import SampleContext
from millrace_worker.sampling.watermark import Watermark

if TYPE_CHECKING:
    from millrace_kernels import Machine

    from millrace_worker.sampling.rows import SamplingRows

# The kernel's names of what a row asks for.
KERNEL_FEATURES = ((Feature.WATERMARK, 1), (PENALTIES, 2), (NARROWING, 4), (Feature.SAMPLE, 8))
NUMBERS = ("temperature", "top_p", "typical_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


@dataclass(frozen=True)
class Columns:
    """Parameters of `rows` as the kernel takes them; valid until those of a row change. Nobody writes to `rows`.

    `numbers` float32 [R, 8], `whole` int64 [R, 4]. `penalized`: the places of rows with penalties.
    """

    rows: NDArray[np.int64]
    vocab_size: int
    version: int
    used: Feature
    numbers: NDArray[np.float32]
    whole: NDArray[np.int64]
    penalized: NDArray[np.int64]


class NativeSampler:
    def __init__(self, machine: Machine, watermark: Watermark) -> None:
        from millrace_kernels import Sampler as Kernel

        self._run = Kernel(machine, (watermark.largest_green, watermark.delta)).sample
        self._columns: Columns | None = None
        self._step = np.zeros((0, 4), dtype=np.int64)

    def sample(self, logits_RV: Tensor, context: SampleContext, state: SamplingRows) -> Sampled:
        """As `sampler.sample`, after the clients' own edits. The logits stay as they are."""
        num_rows, vocab_size = logits_RV.shape
        if logits_RV.dtype is not torch.float32:
            raise ValueError(f"scores are float32, not {logits_RV.dtype}")
        if not logits_RV.is_contiguous():  # ranks' columns side by side, some of which stand for no token
            logits_RV = state.workspace.take("scores", (num_rows, vocab_size)).copy_(logits_RV)
        columns = self._known(context.rows, vocab_size, state)
        counts = (0, 0)
        if len(columns.penalized):
            penalized = context.select(columns.penalized)
            state.counts.advance(penalized, state.num_prompt_tokens[penalized.rows], vocab_size)
            counts = state.counts.addresses
        ids_R = state.workspace.take("ids", (num_rows,), torch.int64)
        logprobs_R = state.workspace.take("logprobs", (num_rows,))
        tops = self._run(
            (logits_RV.data_ptr(), num_rows, vocab_size),
            (columns.numbers, columns.whole),
            self._of_step(context, columns.used, state),
            counts,
            (ids_R.data_ptr(), logprobs_R.data_ptr()),
        )
        return Sampled(ids_R, logprobs_R, None if tops is None else _top_tokens(*tops))

    def _of_step(self, context: SampleContext, used: Feature, state: SamplingRows) -> NDArray[np.int64]:
        """Keys of the noise, tokens before, lengths; what nobody reads may be anything."""
        if len(self._step) != len(context.rows):
            self._step = np.zeros((len(context.rows), 4), dtype=np.int64)
        if used & Feature.SAMPLE:
            self._step[:, :2] = state.noise.host_keys(context.rows, context.positions)
        if used & Feature.WATERMARK:
            self._step[:, 2] = context.previous_tokens().numpy()
        self._step[:, 3] = context.positions
        return self._step

    def _known(self, rows: NDArray[np.int64], vocab_size: int, state: SamplingRows) -> Columns:
        known = self._columns
        if (
            known is None
            or known.version != state.version
            or known.vocab_size != vocab_size
            or not (known.rows is rows or np.array_equal(known.rows, rows))
        ):
            known = self._columns = make_columns(rows, vocab_size, state)
        return known


def make_columns(rows: NDArray[np.int64], vocab_size: int, state: SamplingRows) -> Columns:
    features = state.features[rows]
    numbers = np.stack([state.numbers[name][rows] for name in (*NUMBERS, "count_penalty")], axis=1)
    numbers[:, 3] = -torch.from_numpy(numbers[:, 3]).log().numpy()
    whole = np.zeros((len(rows), 4), dtype=np.int64)
    for feature, bit in KERNEL_FEATURES:
        whole[:, 0] |= np.where(features & int(feature), bit, 0)
    whole[:, 1] = np.where(state.top_k[rows] < vocab_size, state.top_k[rows], 0)
    whole[:, 2] = state.top_n_tokens[rows]
    whole[:, 3] = rows
    nothing = features == 0  # such a row may have another sequence's numbers still
    numbers[nothing, 0], whole[nothing, 2] = 1.0, 0
    return Columns(
        rows=rows,
        vocab_size=vocab_size,
        version=state.version,
        used=Feature(int(np.bitwise_or.reduce(features, initial=0))),
        numbers=numbers,
        whole=whole,
        penalized=np.flatnonzero(features & int(PENALTIES)),
    )


def _top_tokens(counts: bytes, ids: bytes, logprobs: bytes) -> TopTokens:
    return TopTokens(
        np.frombuffer(counts, dtype=np.int64),
        np.frombuffer(ids, dtype=np.int64),
        np.frombuffer(logprobs, dtype=np.float32),
    )
