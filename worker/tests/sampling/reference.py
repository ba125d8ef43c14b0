"""What results are compared with: transformers' processors, and distributions that a histogram can contradict."""

import math

import numpy as np


def transform(processor, token_ids, scores):
    """A logits processor of transformers, which declares narrower tensor types than it needs."""
    return processor(token_ids, scores)


def chi_square_limit(degrees):
    """What a chi-square statistic exceeds with probability 3e-7 (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 5 * math.sqrt(2 / (9 * degrees))) ** 3


def assert_drawn_from(ids, probabilities):
    """`ids` are independent draws from `probabilities`; what is expected less than 10 times is counted as one."""
    expected = np.asarray(probabilities, dtype=np.float64) * len(ids)
    counts = np.bincount(ids, minlength=len(expected)).astype(np.float64)
    assert not counts[expected == 0].any(), "a token of probability 0 was drawn"
    rare = expected < 10
    expected = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    used = expected > 0
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert statistic < chi_square_limit(max(1, used.sum() - 1))
