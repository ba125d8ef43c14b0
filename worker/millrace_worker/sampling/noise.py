"""Counter-based noise: one uniform number per (seed, position), the same wherever and whenever it is asked for.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011).
Key = the seed's two halves, counter = (position's two halves, 0, 0); the first two of the four output words make one
number of 53 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
# Multipliers of counter words 0 and 2; increments of the two key words per round (golden ratio, sqrt(3) - 1).
MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
WORD = np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)

BLOCK = 128  # positions whose noise is computed at once: one call of the generator per row and 128 tokens


def philox4x32(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Ten rounds of Philox on counters [4, N] and keys [2, N], 32-bit words held in uint64; gives words [4, N]."""
    even, odd = counter[0::2], counter[1::2]  # words (0, 2) are multiplied, words (1, 3) are mixed in
    for _ in range(ROUNDS):
        product = even * MULTIPLIERS
        # Word 0 comes from the product of word 2 and the other way round.
        even, odd = (product >> WORD)[::-1] ^ odd ^ key, (product & LOW)[::-1]
        key = (key + WEYL) & LOW
    return np.stack((even[0], odd[0], even[1], odd[1]))


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits, one per pair of seed [N] and position [N]."""
    places = positions.astype(np.uint64)
    zeros = np.zeros_like(places)
    words = philox4x32(np.stack((places & LOW, places >> WORD, zeros, zeros)), np.stack((seeds & LOW, seeds >> WORD)))
    return ((words[0] >> np.uint64(5)) * 2.0**26 + (words[1] >> np.uint64(6))) * 2.0**-53


class Noise:
    """`uniforms` for the rows of a batch, computed `BLOCK` positions ahead and kept per row."""

    def __init__(self, max_rows: int) -> None:
        self._seeds = np.zeros(max_rows, dtype=np.uint64)
        self._blocks = np.full(max_rows, -1, dtype=np.int64)  # which block of positions `_numbers` holds; -1: none
        self._numbers = np.zeros((max_rows, BLOCK))

    def seed(self, row: int, seed: int) -> None:
        self._seeds[row] = seed
        self._blocks[row] = -1

    def at(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """One number in [0, 1) per row [R] at its position [R]."""
        blocks, offsets = np.divmod(positions, BLOCK)
        stale = self._blocks[rows] != blocks
        if stale.any():
            self._fill(rows[stale], blocks[stale])
        return self._numbers[rows, offsets]

    def _fill(self, rows: NDArray[np.int64], blocks: NDArray[np.int64]) -> None:
        positions = blocks[:, None] * BLOCK + np.arange(BLOCK)
        seeds = np.broadcast_to(self._seeds[rows][:, None], positions.shape)
        self._numbers[rows] = uniforms(seeds.ravel(), positions.ravel()).reshape(positions.shape)
        self._blocks[rows] = blocks
