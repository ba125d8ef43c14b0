"""From weights and gaps to tokens: the best one or a drawn one per row, and the top tokens that a client asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling.noise import exponentials
from millrace_worker.sampling.operators import argmax
from millrace_worker.sampling.workspace import Workspace


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

    A row whose scores held NaN, or nothing but -inf, has an id in range and the logprob NaN. The tensors are valid
    until the next step.
    """

    token_ids: Tensor
    logprobs: Tensor
    top_tokens: TopTokens | None


@dataclass(frozen=True)
class PromptScores:
    """Of prompt tokens: `logprobs` [P] float32; `top_ids` int64, `top_logprobs` float32 [P, K]: the likeliest in their
    places by raw scores, best first. K is the most that anybody asked for, perhaps 0."""

    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


def draw(weights_SV: Tensor, keys_S2: Tensor, words_V: Tensor, workspace: Workspace) -> Tensor:
    """A token of each row, drawn with a probability proportional to its weight: int64 [S]. Uses up the weights.

    A race of exponentials: tokens arrive at E / weight, where E is exponential noise, and the first one wins (the same
    as the largest score + Gumbel noise, -log E: Gumbel 1954, Maddison et al. 2014). `keys_S2` and `words_V` (a word per
    token, [V] or [S, V]) name the noise (`noise.exponentials`). A token's arrival depends on its own score alone, up to
    a factor that all share: errors of 1e-6 in the scores, as other neighbours in a batch bring about, change one winner
    in a million. Inverting the cumulative distribution instead would move every boundary between tokens.

    A token of weight 0 has the speed 0, and the likeliest a speed above 0: it cannot win.
    """
    speeds_SV = weights_SV.div_(exponentials(keys_S2, words_V, workspace))
    return argmax(speeds_SV, workspace.take("drawn", (len(weights_SV),), torch.int64))


def least_of_top(gaps_SV: Tensor, wanted_S: NDArray[np.int64]) -> Tensor:
    """The gap of each row's `wanted`-th best token: [S, 1]."""
    most = min(int(wanted_S.max()), gaps_SV.shape[1])
    wanted = torch.from_numpy(wanted_S.clip(max=most)).to(gaps_SV.device)
    return gaps_SV.topk(most, dim=1, largest=False).values.gather(1, wanted[:, None] - 1)


@dataclass(frozen=True)
class Found:
    """Top tokens in any order: their rows int64, ids int64 and logprobs float32, on the host."""

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]

    def without(self, rows: NDArray[np.int64]) -> Found:
        kept = ~np.isin(self.rows, rows)
        return Found(self.rows[kept], self.ids[kept], self.logprobs[kept])


def within(gaps_SV: Tensor, near_S1: Tensor, far_S1: Tensor, log_mass_S1: Tensor) -> Found:
    """All finite gaps from `near` to `far`; `ids` are their columns. Asks the device, and waits."""
    if gaps_SV.device.type == "cpu":  # numpy's comparison and search take a fraction of torch's time
        near_enough = np.flatnonzero(gaps_SV.numpy() <= far_S1.numpy())
        rows, columns = np.divmod(near_enough, gaps_SV.shape[1])
    else:
        rows, columns = (gaps_SV <= far_S1).nonzero().cpu().numpy().T
    places = torch.from_numpy(rows).to(gaps_SV.device), torch.from_numpy(columns).to(gaps_SV.device)
    gaps = gaps_SV[places]
    logprobs = (-gaps - log_mass_S1[places[0], 0]).float()
    chosen = ((gaps >= near_S1[places[0], 0]) & (gaps < torch.inf)).cpu().numpy()
    return Found(rows[chosen], columns[chosen], logprobs.cpu().numpy()[chosen])


def joined(found: Sequence[Found]) -> Found:
    return Found(
        np.concatenate([each.rows for each in found]),
        np.concatenate([each.ids for each in found]),
        np.concatenate([each.logprobs for each in found]),
    )


def top_tokens(found: Sequence[Found], num_rows: int) -> TopTokens:
    """Of all rows, in their order."""
    whole = joined(found)
    order = np.lexsort((whole.ids, -whole.logprobs, whole.rows))
    return TopTokens(np.bincount(whole.rows, minlength=num_rows), whole.ids[order], whole.logprobs[order])
