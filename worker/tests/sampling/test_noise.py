"""The generator against its authors' test vectors, and the noise that is made of it."""

import numpy as np
import pytest
import torch
from millrace_worker.sampling.hashing import keyed
from millrace_worker.sampling.noise import BLOCK, Noise, exponentials, philox4x32, row_keys, token_words

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


CPU = torch.device("cpu")


def keys_of(seeds, positions):
    return torch.from_numpy(row_keys(np.asarray(seeds, dtype=np.uint64), np.asarray(positions, dtype=np.int64)))


def shares(exponentials_SV, bins=16):
    """The uniform numbers in [0, 1] of which the exponentials are made, as places in equal bins."""
    return (-torch.expm1(-exponentials_SV.double()) * bins).long().clamp(max=bins - 1).numpy()


def assert_unrelated(places, others, bins=16):
    """Two columns of places in bins are each uniform, and say nothing about each other."""
    assert_drawn_from((places * bins + others).ravel(), np.full(bins**2, 1 / bins**2))


def test_keys_are_the_first_two_words():
    assert keys_of([0], [0]).numpy().view(np.uint32).tolist() == [[0x6627E8D5, 0xE169C58D]]


def test_every_bit_of_seed_and_position_counts():
    seeds = [0] + [1 << bit for bit in range(64)]
    assert len(keys_of(seeds, [0] * 65).unique(dim=0)) == 65
    positions = [0] + [1 << bit for bit in range(63)]
    assert len(keys_of([0] * 64, positions).unique(dim=0)) == 64


def test_no_two_tokens_have_the_same_word():
    assert len(token_words(300_000, CPU).unique()) == 300_000


def xorshift(word, bits):
    return word ^ word >> bits


def unshift(word, bits):
    """The inverse of `xorshift`, for shifts of 11 bits and more."""
    return word ^ word >> bits ^ word >> 2 * bits


def test_keyed_words_are_the_written_formula(seed):
    rng = np.random.default_rng(seed)
    words, keys = rng.integers(0, 2**32, 50, dtype=np.uint32), rng.integers(0, 2**32, (4, 2), dtype=np.uint32)
    ours = keyed(torch.from_numpy(words.view(np.int32)), torch.from_numpy(keys.view(np.int32))).numpy().view(np.uint32)
    for row, (first, second) in enumerate(keys.tolist()):
        for column, word in enumerate(words.tolist()):
            mixed = xorshift((word ^ first) * 0x85EBCA6B % 2**32, 15)
            mixed = xorshift((mixed + second) * 0xC2B2AE35 % 2**32, 16)
            mixed = xorshift(mixed * 0x27D4EB2F % 2**32, 15)
            assert ours[row, column] == mixed * 0x165667B1 % 2**32


def word_with_noise(x, first, second):
    """The word whose keyed hash is `x`: the hash backwards."""
    mixed = unshift(x * pow(0x165667B1, -1, 2**32) % 2**32, 15)
    mixed = unshift(mixed * pow(0x27D4EB2F, -1, 2**32) % 2**32, 16)
    mixed = unshift((mixed * pow(0xC2B2AE35, -1, 2**32) - second) % 2**32, 15)
    return mixed * pow(0x85EBCA6B, -1, 2**32) % 2**32 ^ first


def test_exponentials_are_above_0_and_finite_at_both_ends(seed):
    first, second = np.random.default_rng(seed).integers(0, 2**32, 2).tolist()
    smallest, largest = [0, 1, 2, 1000, 2**31], [2**31 - 1, 2**31 - 64, 2**32 - 1]  # the sign bit is dropped
    hashes = [word_with_noise(x, first, second) for x in smallest + largest]
    keys, words = (np.array(values, dtype=np.uint32).view(np.int32) for values in ([[first, second]], hashes))
    ours = exponentials(torch.from_numpy(keys), torch.from_numpy(words))[0].numpy()
    expected = -np.log1p(-(np.array([0, 1, 2, 1000, 0]) + 0.5) / 2**31)
    np.testing.assert_allclose(ours[:5], expected, rtol=1e-6)
    assert (ours[5:] > 16).all()
    assert (ours[5:] < 18).all()


def test_exponentials_are_exponential(seed):
    drawn = exponentials(keys_of(np.full(64, seed), range(64)), token_words(32_000, CPU)).double().ravel()
    until = -torch.expm1(-drawn)
    assert_drawn_from((until * 1000).long().numpy(), np.full(1000, 1 / 1000))
    small = until[until < 2**-12] * 2**12  # the likely winners of a race
    assert_drawn_from((small * 8).long().numpy(), np.full(8, 1 / 8))


@pytest.mark.parametrize("varied", ["position", "seed"])
@pytest.mark.parametrize("step", [1, 2, 128])
def test_neighbouring_positions_and_seeds_have_unrelated_noise(varied, step, seed):
    starts, fixed = np.arange(64) * 2 * step, np.full(64, seed)
    both = []
    for numbers in (starts, starts + step):
        keys = keys_of(fixed, numbers) if varied == "position" else keys_of(numbers + seed, fixed)
        both.append(shares(exponentials(keys, token_words(2000, CPU))))
    assert_unrelated(*both)


@pytest.mark.parametrize("step", [1, 2, 7, 64, 1024])
def test_neighbouring_tokens_have_unrelated_noise(step, seed):
    tokens = np.arange(2 * 1024)
    firsts = tokens[(tokens // step % 2 == 0) & (tokens + step < len(tokens))]
    bins = shares(exponentials(keys_of(np.full(100, seed), range(100)), token_words(len(tokens), CPU)))
    assert_unrelated(bins[:, firsts], bins[:, firsts + step])


@pytest.mark.parametrize("bit", [0, 26, 28, 31])
def test_words_that_differ_in_one_bit_have_unrelated_noise(bit, seed):
    """A hash of few rounds fails there first, and only a fine histogram of many draws shows it."""
    draws = 1_000_000
    word = torch.randint(-(2**31), 2**31, (1,), dtype=torch.int32)
    pair = torch.cat((word, word ^ (1 << bit if bit < 31 else -(2**31))))
    places = shares(exponentials(keys_of(np.full(draws, seed), range(draws)), pair), bins=64)
    assert_unrelated(places[:, 0], places[:, 1], bins=64)


def test_noise_does_not_depend_on_how_much_of_it_is_asked_for(seed):
    keys, words = keys_of(np.full(9, seed), range(9)), token_words(1003, CPU)
    whole = exponentials(keys, words)
    for row in range(9):
        alone, part = keys[row : row + 1], slice(row, 11 * row + 1)
        assert torch.equal(exponentials(alone, words)[0], whole[row])
        assert torch.equal(exponentials(alone, words[part])[0], whole[row, part])


def test_rows_get_their_own_keys_at_any_position_in_any_order(seed):
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 2**64, 7, dtype=np.uint64)
    noise = Noise(7, CPU)
    for row, value in enumerate(seeds):
        noise.seed(row, int(value))
    for _ in range(60):
        rows = rng.permutation(7)[: rng.integers(1, 8)]
        positions = rng.integers(0, 3 * BLOCK, len(rows))
        assert torch.equal(noise.keys(rows, positions), keys_of(seeds[rows], positions))


def test_a_row_that_is_taken_over_does_not_keep_the_keys_of_its_former_sequence():
    noise = Noise(1, CPU)
    noise.seed(0, 5)
    former = noise.keys(np.array([0]), np.array([3]))
    noise.seed(0, 6)
    latter = noise.keys(np.array([0]), np.array([3]))
    assert torch.equal(latter, keys_of([6], [3]))
    assert not torch.equal(latter, former)


def test_words_are_those_of_the_vocabulary_that_is_asked_for():
    noise = Noise(1, CPU)
    for vocab_size in (50, 50, 700, 3):
        assert torch.equal(noise.words(vocab_size), token_words(vocab_size, CPU))
