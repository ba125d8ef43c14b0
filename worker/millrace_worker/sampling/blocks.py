"""Which rows of a step are sampled together, with their parameters: made when the rows change, not in every step.

Rows that ask for the same kinds of work form a block; a neutral parameter changes no bit of a score, so kinds are
coarse. A row's result depends on its own kinds alone, and what nobody in a block asks for is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling.narrowing import HEAD, Limits

if TYPE_CHECKING:
    from millrace_worker.sampling.rows import SamplingRows


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


PENALTIES = Feature.REPETITION | Feature.FREQUENCY | Feature.OUTPUT_COUNTS
NARROWING = Feature.TOP_K | Feature.TOP_P | Feature.TYPICAL_P | Feature.MIN_P

ANY = ~Feature(0)

# Features that are computed together make one kind of work. Every row with a feature has its scores scaled.
KINDS = (Feature.WATERMARK, PENALTIES, NARROWING, Feature.SAMPLE, Feature.TOP_TOKENS, ANY)


@dataclass(frozen=True)
class Block:
    """S rows with the same kinds of work. `used`: the features of any of them.

    `places`: where they stand among the R rows of the step, as a slice where they follow one another. On the device:
    `places_device`, `rows_device` int64 [S]; `columns` float32 [S, 1] by the parameter's name.
    """

    used: Feature
    rows: NDArray[np.int64]
    places: slice | NDArray[np.int64]
    places_device: Tensor
    rows_device: Tensor
    columns: dict[str, Tensor]
    limits: Limits
    needs_total: bool  # some row is not narrowed by top-k
    fits_head: bool  # some row may be narrowed to less than the head
    num_prompt_tokens: NDArray[np.int64]
    top_n_tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """How `rows` are sampled from a vocabulary; valid until the parameters of a row change."""

    rows: NDArray[np.int64]
    vocab_size: int
    version: int
    blocks: tuple[Block, ...]


def make_blocks(state: SamplingRows, rows: NDArray[np.int64], vocab_size: int) -> Blocks:
    features = state.features[rows]
    kinds = np.zeros_like(features)
    for bit, kind in enumerate(KINDS):
        kinds |= (features & int(kind) != 0).astype(np.int64) << bit
    order = np.argsort(kinds, kind="stable")
    changes = np.flatnonzero(np.diff(kinds[order])) + 1
    at_once = state.workspace.rows_at_once(vocab_size)
    blocks = []
    for group in np.split(order, changes):
        # Argmax and log-softmax go row by row of themselves: no part of such a group needs to fit into a cache.
        size = at_once if features[group[0]] else len(group)
        blocks += [_block(state, rows, group[at : at + size], vocab_size) for at in range(0, len(group), size)]
    return Blocks(rows.copy(), vocab_size, state.version, tuple(blocks))


def _block(state: SamplingRows, all_rows: NDArray[np.int64], places: NDArray[np.int64], vocab_size: int) -> Block:
    rows = all_rows[places]
    features = state.features[rows]
    used = Feature(int(np.bitwise_or.reduce(features)))
    columns = {name: state.upload(values[rows][:, None]) for name, values in state.numbers.items()}
    top_k = np.where(state.top_k[rows] < vocab_size, state.top_k[rows], 0)
    first, last = int(places[0]), int(places[-1])
    return Block(
        used=used,
        rows=rows,
        places=slice(first, last + 1) if last - first + 1 == len(places) else places,
        places_device=state.upload(places),
        rows_device=state.upload(rows),
        columns=columns,
        limits=Limits(
            top_k=state.upload(top_k[:, None]),
            top_p=columns["top_p"],
            typical_p=columns["typical_p"],
            spread=-columns["min_p"].log(),
            any_typical=bool(used & Feature.TYPICAL_P),
        ),
        needs_total=bool((top_k == 0).any()),
        fits_head=vocab_size > HEAD and _fits_head(features, top_k),
        num_prompt_tokens=state.num_prompt_tokens[rows],
        top_n_tokens=state.top_n_tokens[rows],
    )


def _fits_head(features: NDArray[np.int64], top_k: NDArray[np.int64]) -> bool:
    """Whether `narrow` can be certain about the best `HEAD` tokens of any row."""
    by_p = (top_k == 0) & (features & Feature.TOP_P != 0)
    by_min_p = (features & Feature.MIN_P != 0) & (features & Feature.TYPICAL_P == 0)
    return bool(((top_k > 0) & (top_k < HEAD) | by_p | by_min_p).any())
