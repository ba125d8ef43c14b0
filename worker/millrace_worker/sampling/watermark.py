"""The watermark of Kirchenbauer et al. (A Watermark for Large Language Models, ICML 2023): a bias on green tokens.

The green list of a position depends on the token before it alone. A token v is green after token p when

    mix(mix(v) ^ mix(15485863 * p)) < gamma * 2**32          (32-bit words; mix is MurmurHash3's finaliser)

so that each token is green with probability gamma, independently, and the list is made where the scores are, for all
rows at once and without asking which token p is. Text Generation Inference takes the first gamma * V entries of a
torch.Generator's permutation seeded with the same 15485863 * p instead: its lists are other lists, and only a detector
that uses `green_list` finds this watermark.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from millrace_worker.sampling.hashing import mix

HASH_KEY = 15485863
SIGN = -(2**31)


@dataclass(frozen=True)
class Watermark:
    gamma: float = 0.5  # share of green tokens
    delta: float = 2.0  # what their scores gain

    def __post_init__(self) -> None:
        if not 2**-32 <= self.gamma <= 1 - 2**-32:
            raise ValueError(f"watermark gamma is {self.gamma:g}, but must lie between 0 and 1")

    def add(self, scores_SV: Tensor, previous_S: Tensor) -> Tensor:
        """Scores with `delta` added to the green tokens; `previous_S` are the ids of the tokens before."""
        green_SV = _green(previous_S, scores_SV.shape[1], self.gamma)
        return scores_SV + green_SV * self.delta


def green_list(previous_token: int, vocab_size: int, gamma: float) -> Tensor:
    """Which tokens are green after `previous_token`: bool [vocab_size]."""
    return _green(torch.tensor([previous_token]), vocab_size, gamma)[0]


def _green(previous_S: Tensor, vocab_size: int, gamma: float) -> Tensor:
    """bool [S, V]. int32 arithmetic wraps modulo 2**32, and flipping the sign bit orders words as unsigned."""
    tokens_V = torch.arange(vocab_size, dtype=torch.int32, device=previous_S.device)
    keys_S = mix(previous_S.to(torch.int32) * HASH_KEY)
    words_SV = mix(mix(tokens_V)[None] ^ keys_S[:, None])
    largest_green = int(gamma * 2**32) - 1
    return (words_SV ^ SIGN) <= largest_green + SIGN
