"""The generator against its authors' test vectors, and the noise that is made of it."""

import numpy as np
import pytest
from millrace_worker.sampling.noise import BLOCK, Noise, philox4x32, uniforms

from .reference import assert_drawn_from

# Known answers for philox4x32 with 10 rounds, from the authors' Random123 distribution: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    assert philox4x32(words(counter)[:, None], words(key)[:, None])[:, 0].tolist() == words(expected).tolist()


def test_philox_computes_many_counters_as_it_computes_each(seed):
    rng = np.random.default_rng(seed)
    counters = rng.integers(0, 2**32, (4, 9), dtype=np.uint64)
    keys = rng.integers(0, 2**32, (2, 9), dtype=np.uint64)
    together = philox4x32(counters, keys)
    for index in range(9):
        alone = philox4x32(counters[:, index : index + 1], keys[:, index : index + 1])
        assert together[:, index].tolist() == alone[:, 0].tolist()


def test_uniforms_are_the_first_two_words_as_53_bits():
    number = uniforms(np.array([0], dtype=np.uint64), np.array([0]))[0]
    assert number == ((0x6627E8D5 >> 5) * 2**26 + (0xE169C58D >> 6)) / 2**53


def test_every_bit_of_seed_and_position_counts():
    seeds = [0] + [1 << bit for bit in range(64)]
    assert len(set(uniforms(np.array(seeds, dtype=np.uint64), np.zeros(65, dtype=np.int64)))) == 65
    positions = np.array([0] + [1 << bit for bit in range(63)])
    assert len(set(uniforms(np.zeros(64, dtype=np.uint64), positions))) == 64


@pytest.mark.parametrize("varied", ["position", "seed"])
def test_uniforms_are_uniform_and_neighbours_unrelated(varied, seed):
    count = 50_000
    steps, fixed = np.arange(count), np.full(count, seed)
    seeds, positions = (fixed, steps) if varied == "position" else (steps, fixed)
    numbers = uniforms(seeds.astype(np.uint64), positions)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert_drawn_from((numbers * 100).astype(np.int64), np.full(100, 1 / 100))
    pairs = (numbers[::2] * 16).astype(np.int64) * 16 + (numbers[1::2] * 16).astype(np.int64)
    assert_drawn_from(pairs, np.full(256, 1 / 256))


def test_rows_get_their_own_noise_at_any_position_in_any_order(seed):
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 2**64, 7, dtype=np.uint64)
    noise = Noise(7)
    for row, value in enumerate(seeds):
        noise.seed(row, int(value))
    for _ in range(60):
        rows = rng.permutation(7)[: rng.integers(1, 8)]
        positions = rng.integers(0, 3 * BLOCK, len(rows))
        assert noise.at(rows, positions).tolist() == uniforms(seeds[rows], positions).tolist()


def test_a_row_that_is_taken_over_does_not_keep_the_noise_of_its_former_sequence():
    noise = Noise(1)
    noise.seed(0, 5)
    former = noise.at(np.array([0]), np.array([3]))
    noise.seed(0, 6)
    latter = noise.at(np.array([0]), np.array([3]))
    assert latter == uniforms(np.array([6], dtype=np.uint64), np.array([3]))
    assert latter != former
