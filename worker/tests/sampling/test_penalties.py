"""Penalties against loops over tokens in numpy, with rows and places that must not be read poisoned."""

import numpy as np
import pytest
import torch
from millrace_worker.sampling import SampleContext, penalties
from millrace_worker.sampling.counts import TokenCounts
from millrace_worker.sampling.workspace import Workspace
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


def counts_of(context, num_prompt_tokens, vocab, counts=None):
    """Of all tokens and of the output alone, as the sampler gathers them."""
    counts = counts or TokenCounts(MAX_ROWS, torch.device("cpu"))
    counts.advance(context, num_prompt_tokens, vocab)
    both = torch.full((2, len(context.rows), vocab), torch.nan)
    counts.gather(torch.from_numpy(context.rows), both[0], both[1])
    return both


def tokens_of(context, index):
    return context.token_ids[context.rows[index], : context.positions[index]]


SHAPES = [(1, 50), (7, 333), (16, 1000)]


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_repetition_penalty_is_that_of_transformers(rows, vocab, seed):
    scores, context, num_prompt_tokens = random_case(seed, rows, vocab)
    penalty = torch.rand(rows, 1) * 2 + 0.001
    counts, _ = counts_of(context, num_prompt_tokens, vocab)
    ours = penalties.repetition_penalty(scores.clone(), counts, penalty, Workspace("cpu"))
    for index in range(rows):
        processor = RepetitionPenaltyLogitsProcessor(float(penalty[index, 0]))
        theirs = transform(processor, tokens_of(context, index)[None], scores[index : index + 1].clone())[0]
        torch.testing.assert_close(ours[index], theirs)


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_frequency_penalty_takes_penalty_times_count_over_length(rows, vocab, seed):
    scores, context, num_prompt_tokens = random_case(seed, rows, vocab)
    penalty = torch.rand(rows, 1) * 4 - 2
    counts, _ = counts_of(context, num_prompt_tokens, vocab)
    lengths = torch.from_numpy(context.positions)[:, None]
    ours = penalties.frequency_penalty(scores.clone(), counts, penalty, lengths).numpy()
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
    _, counts = counts_of(context, num_prompt_tokens, vocab)
    ours = penalties.output_penalties(scores.clone(), counts, (presence, count), Workspace("cpu")).numpy()
    for index in range(rows):
        expected = scores[index].numpy().astype(np.float64)
        output = tokens_of(context, index).tolist()[num_prompt_tokens[index] :]
        for token in output:
            expected[token] -= float(count[index, 0])
        for token in set(output):
            expected[token] -= float(presence[index, 0])
        np.testing.assert_allclose(ours[index], expected, atol=1e-4)


def test_neutral_penalties_change_no_bit(seed):
    """Rows with other penalties share a block with rows that have none of a kind."""
    scores, context, num_prompt_tokens = random_case(seed, 4, 60)
    everything, output = counts_of(context, num_prompt_tokens, 60)
    ones, zeros, workspace = torch.ones(4, 1), torch.zeros(4, 1), Workspace("cpu")
    ours = penalties.repetition_penalty(scores.clone(), everything, ones, workspace)
    penalties.frequency_penalty(ours, everything, zeros, ones)
    assert torch.equal(penalties.output_penalties(ours, output, (zeros, zeros), workspace), scores)


def test_a_row_without_output_has_no_output_penalty(seed):
    scores, context, _ = random_case(seed, 4, 60)
    ones = torch.ones(4, 1)
    _, counts = counts_of(context, context.positions, 60)
    assert torch.equal(penalties.output_penalties(scores.clone(), counts, (ones, ones), Workspace("cpu")), scores)


def test_counts_that_go_on_are_those_that_are_made_anew(seed):
    """Rows grow by one token, jump forward and back, are skipped and taken over, in any company."""
    rng = np.random.default_rng(seed)
    vocab, length = 23, 60
    token_ids = torch.from_numpy(rng.integers(0, vocab, (MAX_ROWS, length)))
    num_prompt_tokens = rng.integers(1, 20, MAX_ROWS)
    positions = rng.integers(1, 30, MAX_ROWS)
    counts = TokenCounts(MAX_ROWS, torch.device("cpu"))
    rows = np.arange(MAX_ROWS)
    for step in range(120):
        if step % 4 == 0:
            rows = rng.permutation(MAX_ROWS)[: rng.integers(1, MAX_ROWS + 1)]
        positions[rows] += 1
        if step % 7 == 0:
            positions[rows[0]] = rng.integers(1, 30)
        if step % 5 == 0:
            counts.forget(rows[-1])
            token_ids[rows[-1]] = torch.from_numpy(rng.integers(0, vocab, length))
        positions[rows] = np.where(positions[rows] >= length, rng.integers(1, 30, len(rows)), positions[rows])
        context = SampleContext(rows, positions[rows], token_ids)
        ours = counts_of(context, num_prompt_tokens[rows], vocab, counts)
        for index, row in enumerate(rows):
            tokens = token_ids[row, : positions[row]]
            assert torch.equal(ours[0, index], torch.bincount(tokens, minlength=vocab).float())
            output = torch.bincount(tokens[num_prompt_tokens[row] :], minlength=vocab).float()
            assert torch.equal(ours[1, index], output)
