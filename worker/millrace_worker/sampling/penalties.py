"""Penalties on tokens that a row has seen, in place, in their order; `counts_SV` float32 says how often it has."""

from __future__ import annotations

import torch
from torch import Tensor

from millrace_worker.sampling.workspace import Workspace


def repetition_penalty(scores_SV: Tensor, counts_SV: Tensor, penalty_S1: Tensor, workspace: Workspace) -> Tensor:
    """Keskar et al. 2019: scores of tokens of prompt or output are divided by the penalty, multiplied if negative.

    Without a branch: the factor is the penalty where a token was seen and 1 elsewhere, and a score is the sum of its
    positive and its negative part, one of which is 0.
    """
    seen_SV = torch.clamp(counts_SV, max=1, out=workspace.take("seen", scores_SV.shape))
    factor_SV = torch.neg(seen_SV, out=workspace.take("factor", scores_SV.shape)).add_(1)
    factor_SV.addcmul_(seen_SV, penalty_S1)
    negative_SV = torch.clamp(scores_SV, max=0, out=seen_SV).mul_(factor_SV)
    return scores_SV.clamp_(min=0).div_(factor_SV).add_(negative_SV)


def frequency_penalty(scores_SV: Tensor, counts_SV: Tensor, penalty_S1: Tensor, lengths_S1: Tensor) -> Tensor:
    """Text Generation Inference's: minus penalty * count / length, over prompt and output."""
    return scores_SV.addcmul_(counts_SV, penalty_S1 / lengths_S1, value=-1)


def output_penalties(
    scores_SV: Tensor, counts_SV: Tensor, penalties_S1: tuple[Tensor, Tensor], workspace: Workspace
) -> Tensor:
    """OpenAI's: minus presence for each token of the output, and minus count for each time it occurs there."""
    presence_S1, count_S1 = penalties_S1
    seen_SV = torch.clamp(counts_SV, max=1, out=workspace.take("seen", scores_SV.shape))
    return scores_SV.addcmul_(seen_SV, presence_S1, value=-1).addcmul_(counts_SV, count_S1, value=-1)
