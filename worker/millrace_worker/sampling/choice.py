"""From processed scores to tokens: the best one or a drawn one per row, and the top tokens that a client asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling.noise import exponentials

# Tokens of all rows that race at once: on a CPU what stays in its cache, elsewhere what bounds the memory (64 MiB each
# of noise and probabilities).
RACE_ELEMENTS = 1 << 17
RACE_ELEMENTS_DEVICE = 1 << 24


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


def draw(scores_SV: Tensor, keys_S2: Tensor, words_V: Tensor) -> Tensor:
    """A token of each row, drawn with the probability that softmax gives it: int64 [S].

    A race of exponentials: tokens arrive at E / p, where E is exponential noise, and the first one wins (the same as
    the largest score + Gumbel noise, -log E: Gumbel 1954, Maddison et al. 2014). `keys_S2` and `words_V` name the
    noise (`noise.exponentials`). A token's arrival depends on its own score alone, up to a factor that all share:
    errors of 1e-6 in the scores, as other neighbours in a batch bring about, change one winner in a million. Inverting
    the cumulative distribution instead would move every boundary between tokens.

    A token of probability 0 has the speed 0, and the likeliest a speed above 0: it cannot win.
    """
    elements = RACE_ELEMENTS if scores_SV.device.type == "cpu" else RACE_ELEMENTS_DEVICE
    rows = max(1, elements // scores_SV.shape[1])
    races = zip(scores_SV.split(rows), keys_S2.split(rows), strict=True)
    return torch.cat([argmax(scores.softmax(dim=1).div_(exponentials(keys, words_V))) for scores, keys in races])


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
