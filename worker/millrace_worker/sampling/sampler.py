"""One sampling step: scores through the features that rows ask for, in the order of Text Generation Inference.

A client's own edits (`edits`), watermark, penalties, temperature, then what narrows the distribution (`narrowing`),
then the choice. A block's scores [S, V] are processed in place and in workspaces: no tensor of the vocabulary's width
is allocated.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from millrace_worker.sampling import choice, operators, penalties
from millrace_worker.sampling.blocks import NARROWING, PENALTIES, Block, Feature
from millrace_worker.sampling.choice import Found, Sampled
from millrace_worker.sampling.context import SampleContext
from millrace_worker.sampling.rows import SamplingRows
from millrace_worker.sampling.selection import Asked, Chooser, Chosen


def sample(logits_RV: Tensor, context: SampleContext, state: SamplingRows) -> Sampled:
    """Choose one token for each of the R rows.

    `logits_RV` float32, contiguous, on the device of `state`; it is used up (overwritten) when a row uses a
    feature.
    """
    num_rows, vocab_size = logits_RV.shape
    state.edits.apply(logits_RV, context)
    if state.native is not None:
        return state.native.sample(logits_RV, context, state)
    ids_R = state.workspace.take("ids", (num_rows,), torch.int64)
    logprobs_R = state.workspace.take("logprobs", (num_rows,))
    found = []
    for block in state.blocks(context.rows, vocab_size).blocks:
        if isinstance(block.places, slice):
            scores_SV = logits_RV[block.places]
        else:
            scores_SV = state.workspace.take("scores", (len(block.rows), vocab_size))
            torch.index_select(logits_RV, 0, block.places_device, out=scores_SV)
        if not block.used:
            _greedy(scores_SV, block, (ids_R, logprobs_R), state)
            continue
        chosen = _process(scores_SV, block, context, state)
        ids_R.index_copy_(0, block.places_device, chosen.ids)
        logprobs_R.index_copy_(0, block.places_device, chosen.logprobs)
        if chosen.top is not None:
            rows = np.arange(num_rows)[block.places][chosen.top.rows]
            found.append(Found(rows, chosen.top.ids, chosen.top.logprobs))
    return Sampled(ids_R, logprobs_R, choice.top_tokens(found, num_rows) if found else None)


def _greedy(scores_SV: Tensor, block: Block, out_R: tuple[Tensor, Tensor], state: SamplingRows) -> None:
    """Rows without any feature: the argmax of the raw scores and its log-softmax."""
    ids_R, logprobs_R = out_R
    straight = isinstance(block.places, slice)
    shape = (len(block.rows),)
    ids_S = ids_R[block.places] if straight else state.workspace.take("some_ids", shape, torch.int64)
    logprobs_S = logprobs_R[block.places] if straight else state.workspace.take("some_logprobs", shape)
    operators.argmax(scores_SV, ids_S)
    softmax_SV = torch.log_softmax(scores_SV, dim=1, out=state.workspace.take("softmax", scores_SV.shape))
    torch.gather(softmax_SV, 1, ids_S[:, None], out=logprobs_S[:, None])
    if not straight:
        ids_R.index_copy_(0, block.places_device, ids_S)
        logprobs_R.index_copy_(0, block.places_device, logprobs_S)


def _process(scores_SV: Tensor, block: Block, step: SampleContext, state: SamplingRows) -> Chosen:
    context = SampleContext(block.rows, step.positions[block.places], step.token_ids)
    if block.used & Feature.WATERMARK:
        state.watermark.add(scores_SV, context.previous_tokens(), state.workspace)
    if block.used & PENALTIES:
        _penalize(scores_SV, block, context, state)
    gaps_SV = scaled_gaps(scores_SV, block.columns["temperature"])
    keys_S2 = state.noise.keys(block.rows, context.positions) if block.used & Feature.SAMPLE else None
    wanted_S = block.top_n_tokens if block.used & Feature.TOP_TOKENS else None
    chooser = Chooser(state.workspace, state.noise.words(scores_SV.shape[1]))
    asked = Asked(block.limits, keys_S2, wanted_S)
    if not block.used & NARROWING:
        return chooser.open(gaps_SV, asked)
    # Which rows the head is enough for must be asked, and waited for: on a device every row is sorted as a whole.
    if block.fits_head and state.device.type == "cpu":
        return chooser.head(gaps_SV, asked, needs_total=block.needs_total)
    return chooser.wide(gaps_SV, asked)


def _penalize(scores_SV: Tensor, block: Block, context: SampleContext, state: SamplingRows) -> None:
    workspace, columns = state.workspace, block.columns
    state.counts.advance(context, block.num_prompt_tokens, scores_SV.shape[1])
    all_SV, output_SV = (workspace.take(name, scores_SV.shape) for name in ("counts_all", "counts_output"))
    state.counts.gather(block.rows_device, all_SV, output_SV)
    if block.used & Feature.REPETITION:
        penalties.repetition_penalty(scores_SV, all_SV, columns["repetition_penalty"], workspace)
    if block.used & Feature.FREQUENCY:
        lengths_S1 = context.upload(context.positions)[:, None]
        penalties.frequency_penalty(scores_SV, all_SV, columns["frequency_penalty"], lengths_S1)
    if block.used & Feature.OUTPUT_COUNTS:
        both = columns["presence_penalty"], columns["count_penalty"]
        penalties.output_penalties(scores_SV, output_SV, both, workspace)


def scaled_gaps(scores_SV: Tensor, temperature_S1: Tensor) -> Tensor:
    """By how much a score is below the best one, over the temperature, in place: no temperature above 0 can overflow.

    A row whose best score is no finite number becomes NaN altogether.
    """
    best_S1 = scores_SV.amax(dim=1, keepdim=True)
    best_S1 = best_S1 + best_S1 * 0
    return torch.sub(best_S1, scores_SV, out=scores_SV).div_(temperature_S1)
