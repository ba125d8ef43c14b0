"""Counter-based noise: a number per (seed, position, token), the same wherever and whenever it is asked for.

Two keys per (seed, position) come from Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as
1, 2, 3; SC 2011) on the host: key = the seed's two halves, counter = (position's two halves, 0, 0), and the first two
of the four output words are taken. What needs a number per token, a cheap hash of the token's id under these keys, is
computed where the scores are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from millrace_worker.sampling import hashing
from millrace_worker.sampling.workspace import Workspace

ROUNDS = 10
# Multipliers of counter words 0 and 2; increments of the two key words per round (golden ratio, sqrt(3) - 1).
MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
WORD = np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)

BLOCK = 128  # positions whose keys are computed at once: one call of the generator per row and 128 tokens


def philox4x32(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Ten rounds of Philox on counters [4, N] and keys [2, N], 32-bit words held in uint64; gives words [4, N]."""
    even, odd = counter[0::2], counter[1::2]  # words (0, 2) are multiplied, words (1, 3) are mixed in
    for _ in range(ROUNDS):
        product = even * MULTIPLIERS
        # Word 0 comes from the product of word 2 and the other way round.
        even, odd = (product >> WORD)[::-1] ^ odd ^ key, (product & LOW)[::-1]
        key = (key + WEYL) & LOW
    return np.stack((even[0], odd[0], even[1], odd[1]))


def row_keys(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """The bits of two 32-bit words per pair of seed [N] and position [N]: int32 [N, 2]."""
    places = positions.astype(np.uint64)
    zeros = np.zeros_like(places)
    words = philox4x32(np.stack((places & LOW, places >> WORD, zeros, zeros)), np.stack((seeds & LOW, seeds >> WORD)))
    return words[:2].T.astype(np.uint32).view(np.int32)


def token_words(vocab_size: int, device: torch.device) -> Tensor:
    """A well mixed 32-bit word per token, no two alike: int32 [V]."""
    return hashing.mix(torch.arange(vocab_size, dtype=torch.int32, device=device))


def exponentials(keys_S2: Tensor, words_V: Tensor, workspace: Workspace | None = None) -> Tensor:
    """Draws from the exponential distribution of mean 1, above 0 and finite: float32 [S, V], the workspace's "noise".

    `keys_S2` int32, `words_V` int32 of `token_words`, [V] or [S, V]. -log(1 - v) of v = (x + 1/2) / 2**31, where x has
    31 bits: small draws, among which a race is decided, keep all of them. A float32 has 24, so that v would round to 1
    for the largest x: the factor is one step less than 2**-31.
    """
    workspace = workspace or Workspace(words_V.device)
    x_SV = hashing.keyed(words_V, keys_S2, workspace).bitwise_and_(2**31 - 1)
    noise_SV = workspace.take("noise", x_SV.shape).copy_(x_SV)
    return noise_SV.mul_(-(2.0**-31) * (1 - 2.0**-24)).sub_(2.0**-32).log1p_().neg_()


class Noise:
    """What the noise of a batch's rows is made of.

    The keys of a row are computed `BLOCK` positions ahead and kept, the words of a vocabulary once.
    """

    def __init__(self, max_rows: int, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._seeds = np.zeros(max_rows, dtype=np.uint64)
        self._blocks = np.full(max_rows, -1, dtype=np.int64)  # which block of positions `_keys` holds; -1: none
        self._keys = np.zeros((max_rows, BLOCK, 2), dtype=np.int32)
        self._words = token_words(0, self._device)

    def seed(self, row: int, seed: int) -> None:
        self._seeds[row] = seed
        self._blocks[row] = -1

    def keys(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor:
        """`row_keys` of the rows [R] at their positions [R]: int32 [R, 2] on the device."""
        return torch.from_numpy(self.host_keys(rows, positions)).to(self._device, non_blocking=True)

    def host_keys(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int32]:
        """The same on the host."""
        blocks, offsets = np.divmod(positions, BLOCK)
        stale = self._blocks[rows] != blocks
        if stale.any():
            self._fill(rows[stale], blocks[stale])
        return self._keys[rows, offsets]

    def words(self, vocab_size: int) -> Tensor:
        """`token_words` on the device."""
        if len(self._words) != vocab_size:
            self._words = token_words(vocab_size, self._device)
        return self._words

    def _fill(self, rows: NDArray[np.int64], blocks: NDArray[np.int64]) -> None:
        positions = blocks[:, None] * BLOCK + np.arange(BLOCK)
        seeds = np.broadcast_to(self._seeds[rows][:, None], positions.shape)
        self._keys[rows] = row_keys(seeds.ravel(), positions.ravel()).reshape(*positions.shape, 2)
        self._blocks[rows] = blocks
