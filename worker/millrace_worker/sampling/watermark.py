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

from millrace_worker.sampling.hashing import mix, mix_rows
from millrace_worker.sampling.workspace import Workspace

HASH_KEY = 15485863
SIGN = -(2**31)


@dataclass(frozen=True)
class Watermark:
    gamma: float = 0.5  # share of green tokens
    delta: float = 2.0  # what their scores gain

    def __post_init__(self) -> None:
        if not 2**-32 <= self.gamma <= 1 - 2**-32:
            raise ValueError(f"watermark gamma is {self.gamma:g}, but must lie between 0 and 1")

    @property
    def largest_green(self) -> int:
        """Of a green token's word, with its sign bit flipped."""
        return _largest_green(self.gamma)

    def add(self, scores_SV: Tensor, previous_S: Tensor, workspace: Workspace) -> Tensor:
        """Adds `delta` to the scores of the green tokens, in place; `previous_S` are the ids of the tokens before."""
        words_SV = _flipped_words(previous_S, scores_SV.shape[1], workspace)
        green_SV = workspace.take("green", scores_SV.shape).copy_(words_SV.le_(self.largest_green))
        return scores_SV.add_(green_SV, alpha=self.delta)


def green_list(previous_token: int, vocab_size: int, gamma: float) -> Tensor:
    """Which tokens are green after `previous_token`: bool [vocab_size]."""
    words_1V = _flipped_words(torch.tensor([previous_token]), vocab_size, Workspace("cpu"))
    return words_1V[0] <= _largest_green(gamma)


def _flipped_words(previous_S: Tensor, vocab_size: int, workspace: Workspace) -> Tensor:
    """int32 [S, V]: words modulo 2**32, whose flipped sign bit orders them as unsigned ones."""
    device = workspace.device
    tokens_V = torch.arange(vocab_size, device=device, out=workspace.take("tokens", (vocab_size,), torch.int32))
    keys_S = mix(previous_S.to(torch.int32) * HASH_KEY)
    words_SV = workspace.take("words", (len(previous_S), vocab_size), torch.int32)
    torch.bitwise_xor(mix_rows(tokens_V, workspace), keys_S[:, None], out=words_SV)
    return mix_rows(words_SV, workspace).bitwise_xor_(SIGN)


def _largest_green(gamma: float) -> int:
    return int(gamma * 2**32) - 1 + SIGN
