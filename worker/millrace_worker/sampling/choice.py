"""From processed scores to tokens: the best one or a drawn one per row, and the top tokens that a client asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

GROUP = 64  # tokens whose probabilities are summed first; a power of two


@dataclass(frozen=True)
class TopTokens:
    """The best tokens of the rows that asked, best first, equal ones by id; on the host.

    `counts` int64 [R], 0 where not asked: n, more when tokens are as good as the n-th, fewer when fewer are possible.
    `ids` int64 and `logprobs` float32 [counts.sum()], row after row.
    """

    counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class Sampled:
    """`token_ids` int64 [R], `logprobs` float32 [R] (log-softmax of the processed scores at the choice), on the device.

    A row whose scores held NaN, or nothing but -inf, has an id in range and the logprob NaN.
    """

    token_ids: Tensor
    logprobs: Tensor
    top_tokens: TopTokens | None


def argmax(scores_RV: Tensor) -> Tensor:
    """The best token of each row, the first of equals: int64 [R]."""
    if scores_RV.device.type == "cpu":  # numpy's is vectorised, torch's is 13 times slower
        return torch.from_numpy(scores_RV.numpy().argmax(axis=1))
    return scores_RV.argmax(dim=1)


def draw(scores_SV: Tensor, uniforms_S: Tensor) -> Tensor:
    """A token of each row by inverting a cumulative distribution at u in [0, 1): int64 [S].

    In two steps: the B groups of tokens that are equal modulo B, then the `GROUP` tokens of the group. The sums of the
    groups are element-wise additions in a fixed order: their bits depend neither on the number of rows nor on the
    device.
    """
    vocab = scores_SV.shape[1]
    probs_SV = scores_SV.softmax(dim=1)
    if vocab % GROUP:
        probs_SV = functional.pad(probs_SV, (0, -vocab % GROUP))
    probs_SKB = probs_SV.unflatten(1, (GROUP, -1))
    until_SB = _halving_sum(probs_SKB).double().cumsum(dim=1)
    group_S, rest_S = _invert(until_SB, uniforms_S * until_SB[:, -1])
    within_SK = probs_SKB[torch.arange(len(group_S), device=group_S.device), :, group_S]
    member_S, _ = _invert(within_SK.double().cumsum(dim=1), rest_S)
    return (member_S * probs_SKB.shape[2] + group_S).clamp(max=vocab - 1)


def _halving_sum(values_SKB: Tensor) -> Tensor:
    """The sum over dimension 1, whose length is a power of two."""
    while (half := values_SKB.shape[1] // 2) > 0:
        values_SKB = values_SKB[:, :half] + values_SKB[:, half:]
    return values_SKB[:, 0]


def _invert(cumulative_SN: Tensor, target_S: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry whose cumulative sum exceeds the target, and what is left of the target there.

    An entry of weight 0 never raises the sum, so it is never the first. Rounding may put the target at or above the
    total: it is moved below, to the last entry that has weight.
    """
    total_S = cumulative_SN[:, -1]
    target_S = torch.minimum(target_S, torch.nextafter(total_S, torch.zeros_like(total_S)))[:, None]
    index_S1 = torch.searchsorted(cumulative_SN, target_S, right=True).clamp(max=cumulative_SN.shape[1] - 1)
    before_S1 = functional.pad(cumulative_SN, (1, 0)).gather(1, index_S1)
    return index_S1[:, 0], (target_S - before_S1)[:, 0]


def top_tokens(logprobs_SV: Tensor, wanted_S: NDArray[np.int64]) -> TopTokens:
    """Every token of a row whose logprob is at least that of its `wanted`-th best; removed tokens are never among them.

    Asks the device, and waits: the number of ties is not known before.
    """
    most = min(int(wanted_S.max()), logprobs_SV.shape[1])
    wanted = torch.from_numpy(wanted_S.clip(max=most)).to(logprobs_SV.device)
    least_S1 = logprobs_SV.topk(most, dim=1).values.gather(1, wanted[:, None] - 1)
    chosen = ((logprobs_SV >= least_S1) & (logprobs_SV > -torch.inf)).nonzero()
    values = logprobs_SV[chosen[:, 0], chosen[:, 1]].cpu().numpy()
    rows, ids = chosen.cpu().numpy().T
    order = np.lexsort((ids, -values, rows))
    return TopTokens(np.bincount(rows, minlength=len(wanted_S)), ids[order], values[order])
