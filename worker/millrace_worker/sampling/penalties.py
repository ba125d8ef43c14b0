"""Penalties on tokens that a row has seen, computed from its tokens anew in every step: nothing is kept in between."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling.context import SampleContext


def token_counts(context: SampleContext, vocab_size: int, first: NDArray[np.int64] | None = None) -> Tensor:
    """How often each token stands at positions `first` .. `positions` of each row: float32 [R, V], exact to 2**24."""
    ids_RL, counted_RL = context.history(first)
    counts_RV = torch.zeros(len(context.rows), vocab_size, device=ids_RL.device)
    return counts_RV.scatter_add_(1, ids_RL, counted_RL.float())


def repetition_penalty(scores_SV: Tensor, context: SampleContext, penalty_S1: Tensor) -> Tensor:
    """Keskar et al. 2019: scores of tokens of prompt or output are divided by the penalty, multiplied if negative."""
    ids_SL, _ = context.history()
    seen_SL = scores_SV.gather(1, ids_SL)
    # A token that occurs twice is written twice with the same value.
    return scores_SV.scatter(1, ids_SL, torch.where(seen_SL < 0, seen_SL * penalty_S1, seen_SL / penalty_S1))


def frequency_penalty(scores_SV: Tensor, context: SampleContext, penalty_S1: Tensor) -> Tensor:
    """Text Generation Inference's: minus penalty * count / length, over prompt and output."""
    lengths_S1 = context.upload(context.positions)[:, None]
    return scores_SV - token_counts(context, scores_SV.shape[1]) / lengths_S1 * penalty_S1


def output_penalties(
    scores_SV: Tensor, context: SampleContext, num_prompt_tokens: NDArray[np.int64], penalties: tuple[Tensor, Tensor]
) -> Tensor:
    """OpenAI's: minus presence for each token of the output, and minus count for each time it occurs there."""
    presence_S1, count_S1 = penalties
    counts_SV = token_counts(context, scores_SV.shape[1], num_prompt_tokens)
    return scores_SV - (counts_SV > 0) * presence_S1 - counts_SV * count_S1
