"""Hashes of 32-bit words, held in int32 tensors: their arithmetic wraps modulo 2**32."""

from __future__ import annotations

from torch import Tensor

# Odd, so that multiplying is a bijection: MurmurHash3's two, and the last two primes of xxHash.
MURMUR_1 = 0x85EBCA6B - 2**32
MURMUR_2 = 0xC2B2AE35 - 2**32
XX_4 = 0x27D4EB2F
XX_5 = 0x165667B1


def mix(words: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser, a bijection: every input bit flips each output bit with probability 1/2."""
    words = words ^ _shift_right(words, 16)
    words = words * MURMUR_1
    words = words ^ _shift_right(words, 13)
    words = words * MURMUR_2
    return words ^ _shift_right(words, 16)


def keyed(words_V: Tensor, keys_S2: Tensor) -> Tensor:
    """Words that each row's two keys make of `words_V`, a bijection in every row: int32 [S, V].

    One round after the first key and two more after the second; with one less, words that differ in their highest bits
    alone are related. `words_V` should be well mixed already.
    """
    words_SV = words_V ^ keys_S2[:, :1]
    words_SV.mul_(MURMUR_1)
    words_SV.bitwise_xor_(_shift_right(words_SV, 15))
    words_SV.add_(keys_S2[:, 1:])
    words_SV.mul_(MURMUR_2)
    words_SV.bitwise_xor_(_shift_right(words_SV, 16))
    words_SV.mul_(XX_4)
    words_SV.bitwise_xor_(_shift_right(words_SV, 15))
    return words_SV.mul_(XX_5)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift: `>>` on int32 repeats the sign bit."""
    return (words >> bits).bitwise_and_((1 << (32 - bits)) - 1)
