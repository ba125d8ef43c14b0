"""One sampling step: scores through the features that rows ask for, in the order of Text Generation Inference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling import choice, penalties, warpers
from millrace_worker.sampling.choice import Sampled, TopTokens
from millrace_worker.sampling.context import SampleContext
from millrace_worker.sampling.rows import Feature, SamplingRows

# Takes the scores [S, V] and the context of the S rows that use a feature; gives their new scores.
Processor = Callable[[Tensor, SampleContext, SamplingRows], Tensor]


def sample(logits_RV: Tensor, context: SampleContext, state: SamplingRows) -> Sampled:
    """Choose one token for each of the R rows.

    `logits_RV` float32 on the device of `state`; it is used up (overwritten) when a row uses a feature. A feature
    that no row uses costs nothing, one that some rows use is computed for those alone.
    """
    features_R = state.features[context.rows]
    used = int(np.bitwise_or.reduce(features_R))
    scores_RV = logits_RV
    for feature, processor in PROCESSORS.items():
        if used & feature:
            places = np.flatnonzero(features_R & feature)
            scores_RV = _process(scores_RV, context, places, state, processor)
    ids_R = _choose(scores_RV, context, np.flatnonzero(features_R & Feature.SAMPLE), state)
    logprobs_RV = scores_RV.log_softmax(dim=1)
    top = None
    if used & Feature.TOP_TOKENS:
        top = _top_tokens(logprobs_RV, np.flatnonzero(features_R & Feature.TOP_TOKENS), context, state)
    return Sampled(ids_R, logprobs_RV.gather(1, ids_R[:, None])[:, 0], top)


def _process(
    scores_RV: Tensor, context: SampleContext, places: NDArray[np.int64], state: SamplingRows, processor: Processor
) -> Tensor:
    if len(places) == len(context.rows):
        return processor(scores_RV, context, state)
    index_S = context.upload(places)
    processed_SV = processor(scores_RV.index_select(0, index_S), context.select(places), state)
    return scores_RV.index_copy_(0, index_S, processed_SV)


def _choose(scores_RV: Tensor, context: SampleContext, places: NDArray[np.int64], state: SamplingRows) -> Tensor:
    """Ids int64 [R]: drawn at `places`, the argmax elsewhere."""
    if len(places) == 0:
        return choice.argmax(scores_RV)
    drawing = context.select(places)
    keys_S2 = state.noise.keys(drawing.rows, drawing.positions)
    words_V = state.noise.words(scores_RV.shape[1])
    if len(places) == len(context.rows):
        return choice.draw(scores_RV, keys_S2, words_V)
    index_S = context.upload(places)
    drawn_S = choice.draw(scores_RV.index_select(0, index_S), keys_S2, words_V)
    return choice.argmax(scores_RV).index_copy_(0, index_S, drawn_S)


def _top_tokens(
    logprobs_RV: Tensor, places: NDArray[np.int64], context: SampleContext, state: SamplingRows
) -> TopTokens:
    asked = choice.top_tokens(
        logprobs_RV.index_select(0, context.upload(places)), state.top_n_tokens[context.rows[places]]
    )
    counts = np.zeros(len(context.rows), dtype=np.int64)
    counts[places] = asked.counts
    return TopTokens(counts, asked.ids, asked.logprobs)


def _watermark(scores_SV: Tensor, context: SampleContext, state: SamplingRows) -> Tensor:
    return state.watermark.add(scores_SV, context.previous_tokens())


def _repetition(scores_SV: Tensor, context: SampleContext, state: SamplingRows) -> Tensor:
    return penalties.repetition_penalty(scores_SV, context, state.column("repetition_penalty", context.rows))


def _frequency(scores_SV: Tensor, context: SampleContext, state: SamplingRows) -> Tensor:
    return penalties.frequency_penalty(scores_SV, context, state.column("frequency_penalty", context.rows))


def _output_counts(scores_SV: Tensor, context: SampleContext, state: SamplingRows) -> Tensor:
    rows = context.rows
    presence_and_count = state.column("presence_penalty", rows), state.column("count_penalty", rows)
    return penalties.output_penalties(scores_SV, context, state.num_prompt_tokens[rows], presence_and_count)


def _top_k(scores_SV: Tensor, context: SampleContext, state: SamplingRows) -> Tensor:
    k = state.top_k[context.rows]
    return warpers.top_k(scores_SV, context.upload(k), int(k.max()))


def _by_column(warper: Callable[[Tensor, Tensor], Tensor], name: str) -> Processor:
    return lambda scores_SV, context, state: warper(scores_SV, state.column(name, context.rows))


# In the order of their application.
PROCESSORS: dict[Feature, Processor] = {
    Feature.WATERMARK: _watermark,
    Feature.REPETITION: _repetition,
    Feature.FREQUENCY: _frequency,
    Feature.OUTPUT_COUNTS: _output_counts,
    Feature.TEMPERATURE: _by_column(warpers.temperature, "temperature"),
    Feature.TOP_K: _top_k,
    Feature.TOP_P: _by_column(warpers.top_p, "top_p"),
    Feature.TYPICAL_P: _by_column(warpers.typical_p, "typical_p"),
    Feature.MIN_P: _by_column(warpers.min_p, "min_p"),
}
