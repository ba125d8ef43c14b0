"""Hashes of 32-bit words, held in int32 tensors: their arithmetic wraps modulo 2**32."""

from __future__ import annotations

import torch
from torch import Tensor

from millrace_worker.sampling.workspace import Workspace

# Odd, so that multiplying is a bijection: MurmurHash3's two, and the last two primes of xxHash.
MURMUR_1 = 0x85EBCA6B - 2**32
MURMUR_2 = 0xC2B2AE35 - 2**32
XX_4 = 0x27D4EB2F
XX_5 = 0x165667B1


def mix(words: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser, a bijection: every input bit flips each output bit with probability 1/2."""
    return mix_rows(words.clone(), Workspace(words.device))


def keyed(words_V: Tensor, keys_S2: Tensor, workspace: Workspace | None = None) -> Tensor:
    """Words that each row's two keys make of `words_V`, a bijection in every row: int32 [S, V].

    One round after the first key and two more after the second; with one less, words that differ in their highest bits
    alone are related. `words_V` should be well mixed already, and may be [S, V]. The result is the workspace's "words".
    """
    workspace = workspace or Workspace(words_V.device)
    shape = (len(keys_S2), words_V.shape[-1])
    words_SV, shifted_SV = (workspace.take(name, shape, torch.int32) for name in ("words", "shifted"))
    torch.bitwise_xor(words_V, keys_S2[:, :1], out=words_SV).mul_(MURMUR_1)
    _xor_shifted(words_SV, 15, shifted_SV).add_(keys_S2[:, 1:]).mul_(MURMUR_2)
    _xor_shifted(words_SV, 16, shifted_SV).mul_(XX_4)
    return _xor_shifted(words_SV, 15, shifted_SV).mul_(XX_5)


def mix_rows(words_SV: Tensor, workspace: Workspace) -> Tensor:
    """`mix` in place. Overwrites the workspace's "shifted"."""
    shifted_SV = workspace.take("shifted", words_SV.shape, torch.int32)
    _xor_shifted(words_SV, 16, shifted_SV).mul_(MURMUR_1)
    _xor_shifted(words_SV, 13, shifted_SV).mul_(MURMUR_2)
    return _xor_shifted(words_SV, 16, shifted_SV)


def _xor_shifted(words: Tensor, bits: int, scratch: Tensor) -> Tensor:
    """`words ^= words >> bits`, a logical shift: `>>` on int32 repeats the sign bit."""
    torch.bitwise_right_shift(words, bits, out=scratch).bitwise_and_((1 << (32 - bits)) - 1)
    return words.bitwise_xor_(scratch)
