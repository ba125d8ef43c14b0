"""Warpers: each narrows or sharpens the distribution of every row; a removed token has the score -inf.

All of them keep tokens by a threshold on a value, so that equal scores share one fate, whatever the order of a sort;
the best token always stays.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# A nucleus mostly lies within the best few tokens; finding those costs a fraction of sorting all.
HEAD = 64


def temperature(scores_SV: Tensor, temperature_S1: Tensor) -> Tensor:
    """Scores over temperature, shifted so that the best is 0: no temperature above 0 can overflow."""
    return (scores_SV - scores_SV.amax(dim=1, keepdim=True)).div_(temperature_S1)


def top_k(scores_SV: Tensor, k_S: Tensor, max_k: int) -> Tensor:
    """Keep the k best tokens and those equal to the k-th (Fan et al. 2018). `max_k`: the largest entry of `k_S`."""
    max_k = min(max_k, scores_SV.shape[1])
    best_SK = scores_SV.topk(max_k, dim=1).values
    kth_S1 = best_SK.gather(1, k_S.clamp(max=max_k)[:, None] - 1)
    return scores_SV.masked_fill(scores_SV < kth_S1, -torch.inf)


def top_p(scores_SV: Tensor, p_S1: Tensor) -> Tensor:
    """Keep the smallest set of best tokens whose probability reaches p, and those equal to its last.

    Holtzman et al. 2020 (nucleus sampling). On a CPU only a head of the distribution is sorted where that is enough;
    on a device, asking whether it is would mean to wait.
    """
    vocab = scores_SV.shape[1]
    probs_SV = scores_SV.softmax(dim=1)
    if scores_SV.device.type != "cpu" or vocab <= HEAD:
        least_S1, _ = _nucleus_end(_sort(probs_SV).flip(1), p_S1)
    else:
        least_S1, reached_S = _nucleus_end(probs_SV.topk(HEAD, dim=1).values, p_S1)
        if not reached_S.all():
            wide = (~reached_S).nonzero()[:, 0]
            least_S1[wide] = _nucleus_end(_sort(probs_SV[wide]).flip(1), p_S1[wide])[0]
    return scores_SV.masked_fill(probs_SV < least_S1, -torch.inf)


def _nucleus_end(sorted_SK: Tensor, p_S1: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest probability in the nucleus [S, 1], and whether the nucleus ends within these probabilities [S].

    A token is in the nucleus when those before it do not reach p yet. Summed in float64: ten thousands of small terms.
    """
    reached_SK = sorted_SK.cumsum(dim=1, dtype=torch.float64) >= p_S1
    last_S1 = (~reached_SK).sum(dim=1, keepdim=True).clamp(max=sorted_SK.shape[1] - 1)
    return sorted_SK.gather(1, last_S1), reached_SK[:, -1]


def typical_p(scores_SV: Tensor, mass_S1: Tensor) -> Tensor:
    """Keep the tokens whose information is closest to the entropy until their probability reaches the mass.

    Meister et al. 2023 (Locally Typical Sampling).
    """
    logprobs_SV = scores_SV.log_softmax(dim=1)
    probs_SV = logprobs_SV.exp()
    entropy_S1 = -(logprobs_SV * probs_SV).nansum(dim=1, keepdim=True)  # removed tokens: -inf * 0
    distance_SV = (-logprobs_SV - entropy_S1).abs()
    # Bits of floats that are not negative sort as the floats do: one sort of pairs (distance, probability).
    pairs_SV = _sort((distance_SV.view(torch.int32).long() << 32) | probs_SV.view(torch.int32))
    mass_SV = pairs_SV.to(torch.int32).view(torch.float32).cumsum(dim=1, dtype=torch.float64)
    last_S1 = (mass_SV < mass_S1).sum(dim=1, keepdim=True).clamp(max=scores_SV.shape[1] - 1)
    farthest_S1 = (pairs_SV.gather(1, last_S1) >> 32).to(torch.int32).view(torch.float32)
    return scores_SV.masked_fill(distance_SV > farthest_S1, -torch.inf)


def min_p(scores_SV: Tensor, share_S1: Tensor) -> Tensor:
    """Keep the tokens at least `share` times as probable as the best one (Nguyen et al. 2024)."""
    return scores_SV.masked_fill(scores_SV < scores_SV.amax(dim=1, keepdim=True) + share_S1.log(), -torch.inf)


def _sort(values_SV: Tensor) -> Tensor:
    """Each row from its smallest value up; on a CPU numpy's sort uses vector instructions, torch's does not."""
    if values_SV.device.type == "cpu":
        return torch.from_numpy(np.sort(values_SV.numpy(), axis=1))
    return values_SV.sort(dim=1).values
