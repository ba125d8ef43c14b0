"""Green lists against the written formula, and a detector that finds the watermark in a text."""

import itertools
import math

import numpy as np
import pytest
import torch
from millrace_worker.proto import worker_pb2
from millrace_worker.sampling import SampleContext, SamplingRows, Watermark, green_list, sample
from millrace_worker.sampling.workspace import Workspace

VOCAB = 500


def mix(word):
    """MurmurHash3's 32-bit finaliser in Python's integers."""
    word ^= word >> 16
    word = word * 0x85EBCA6B % 2**32
    word ^= word >> 13
    word = word * 0xC2B2AE35 % 2**32
    return word ^ word >> 16


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5, 0.9])
def test_green_list_is_the_written_formula(gamma, seed):
    for previous in np.random.default_rng(seed).integers(0, 200_000, 5).tolist():
        key = mix(15485863 * previous % 2**32)
        expected = [mix(mix(token) ^ key) < int(gamma * 2**32) for token in range(VOCAB)]
        assert green_list(previous, VOCAB, gamma).tolist() == expected


@pytest.mark.parametrize("gamma", [0.25, 0.5])
def test_green_lists_have_their_share_and_are_unrelated(gamma):
    lists = torch.stack([green_list(previous, VOCAB, gamma) for previous in range(400)]).double()
    assert lists.mean().item() == pytest.approx(gamma, abs=0.005)
    overlap = (lists @ lists.T / VOCAB)[~torch.eye(400, dtype=torch.bool)]
    assert overlap.mean().item() == pytest.approx(gamma**2, abs=0.005)
    deviation = math.sqrt(gamma**2 * (1 - gamma**2) / VOCAB)  # of the overlap of two independent lists
    assert (overlap - gamma**2).abs().max().item() < 6 * deviation


def test_watermark_raises_the_green_tokens_after_the_last_known_one(seed):
    token_ids = torch.randint(0, VOCAB, (3, 20))
    context = SampleContext(np.array([2, 0]), np.array([7, 20]), token_ids)
    scores = torch.randn(2, VOCAB)
    ours = Watermark(gamma=0.3, delta=1.5).add(scores.clone(), context.previous_tokens(), Workspace("cpu"))
    for index, previous in enumerate((token_ids[2, 6], token_ids[0, 19])):
        expected = scores[index] + 1.5 * green_list(int(previous), VOCAB, 0.3)
        assert torch.equal(ours[index], expected)


@pytest.mark.parametrize("gamma", [0.0, 1.0, -1.0, math.nan])
def test_a_share_that_is_none_or_all_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma"):
        Watermark(gamma=gamma)


def z_score(tokens, gamma):
    """Kirchenbauer et al., equation 3: how many more green tokens than chance gives, in standard deviations."""
    pairs = list(itertools.pairwise(tokens))
    green = sum(bool(green_list(previous, VOCAB, gamma)[token]) for previous, token in pairs)
    return (green - gamma * len(pairs)) / math.sqrt(len(pairs) * gamma * (1 - gamma))


@pytest.mark.parametrize(("watermark", "low", "high"), [(True, 6.0, math.inf), (False, -5.0, 5.0)])
def test_a_detector_finds_the_watermark_in_a_sampled_text(watermark, low, high, seed):
    state = SamplingRows(1, "cpu", Watermark(gamma=0.5, delta=2.0))
    parameters = worker_pb2.Sampling(
        do_sample=True, seed=seed, temperature=1, top_p=1, typical_p=1, repetition_penalty=1, watermark=watermark
    )
    state.set(0, parameters, 1)
    token_ids = torch.zeros(1, 201, dtype=torch.int64)
    for position in range(1, 201):
        context = SampleContext(np.array([0]), np.array([position]), token_ids)
        token_ids[0, position] = sample(torch.randn(1, VOCAB), context, state).token_ids[0]
    assert low < z_score(token_ids[0, 1:].tolist(), 0.5) < high
