"""Penalties against loops over tokens in numpy, with rows and places that must not be read poisoned."""

import numpy as np
import pytest
import torch
from millrace_worker.sampling import SampleContext, penalties
from transformers import RepetitionPenaltyLogitsProcessor

from .reference import transform

MAX_ROWS, LENGTH = 20, 40
POISON = 2**40  # far beyond any vocabulary: used as an index it raises


def random_case(seed, rows, vocab):
    """Scores, a context over `rows` shuffled rows of a table whose other places are poisoned, prompt lengths."""
    rng = np.random.default_rng(seed)
    token_ids = np.full((MAX_ROWS, LENGTH), POISON, dtype=np.int64)
    chosen = rng.permutation(MAX_ROWS)[:rows]
    positions = rng.integers(1, LENGTH + 1, rows)
    positions[0] = LENGTH
    for row, position in zip(chosen, positions, strict=True):
        token_ids[row, :position] = rng.integers(0, min(vocab, 30), position)
    num_prompt_tokens = np.array([rng.integers(1, position + 1) for position in positions])
    context = SampleContext(chosen, positions, torch.from_numpy(token_ids))
    return torch.randn(rows, vocab) * 3, context, num_prompt_tokens


def tokens_of(context, index):
    return context.token_ids[context.rows[index], : context.positions[index]]


SHAPES = [(1, 50), (7, 333), (16, 1000)]


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_repetition_penalty_is_that_of_transformers(rows, vocab, seed):
    scores, context, _ = random_case(seed, rows, vocab)
    penalty = torch.rand(rows, 1) * 2 + 0.1
    ours = penalties.repetition_penalty(scores, context, penalty)
    for index in range(rows):
        processor = RepetitionPenaltyLogitsProcessor(float(penalty[index, 0]))
        theirs = transform(processor, tokens_of(context, index)[None], scores[index : index + 1].clone())[0]
        torch.testing.assert_close(ours[index], theirs)


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_frequency_penalty_takes_penalty_times_count_over_length(rows, vocab, seed):
    scores, context, _ = random_case(seed, rows, vocab)
    penalty = torch.rand(rows, 1) * 4 - 2
    ours = penalties.frequency_penalty(scores, context, penalty).numpy()
    for index in range(rows):
        expected = scores[index].numpy().astype(np.float64)
        tokens = tokens_of(context, index).tolist()
        for token in tokens:
            expected[token] -= float(penalty[index, 0]) / len(tokens)
        np.testing.assert_allclose(ours[index], expected, atol=1e-5)


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_output_penalties_count_the_output_alone(rows, vocab, seed):
    scores, context, num_prompt_tokens = random_case(seed, rows, vocab)
    presence, count = torch.rand(rows, 1) * 4 - 2, torch.rand(rows, 1) * 4 - 2
    ours = penalties.output_penalties(scores, context, num_prompt_tokens, (presence, count)).numpy()
    for index in range(rows):
        expected = scores[index].numpy().astype(np.float64)
        output = tokens_of(context, index).tolist()[num_prompt_tokens[index] :]
        for token in output:
            expected[token] -= float(count[index, 0])
        for token in set(output):
            expected[token] -= float(presence[index, 0])
        np.testing.assert_allclose(ours[index], expected, atol=1e-4)


def test_a_row_without_output_has_no_output_penalty(seed):
    scores, context, _ = random_case(seed, 4, 60)
    ones = torch.ones(4, 1)
    assert torch.equal(penalties.output_penalties(scores, context, context.positions, (ones, ones)), scores)
