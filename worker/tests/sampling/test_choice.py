"""Drawing by a race, its edges, and the top tokens with their ties."""

import numpy as np
import pytest
import torch
from millrace_worker.sampling import choice, operators
from millrace_worker.sampling.hashing import keyed
from millrace_worker.sampling.noise import token_words
from millrace_worker.sampling.workspace import Workspace

from .reference import assert_drawn_from

CPU = torch.device("cpu")


def random_keys(rows):
    return torch.randint(-(2**31), 2**31, (rows, 2), dtype=torch.int32)


def race(scores, keys):
    """As many rows at once as the sampler takes."""
    workspace, words = Workspace("cpu"), token_words(scores.shape[1], CPU)
    size = workspace.rows_at_once(scores.shape[1])
    parts = zip(scores.split(size), keys.split(size), strict=True)
    return torch.cat([choice.draw(weights(part), part_keys, words, workspace).clone() for part, part_keys in parts])


def weights(scores):
    return (scores - scores.amax(1, keepdim=True)).exp()


def draw(scores):
    return race(scores, random_keys(len(scores)))


def draw_many(scores, count):
    """`count` draws from the one distribution of `scores` [V]."""
    return torch.cat([draw(scores.repeat(1000, 1)) for _ in range(count // 1000)]).numpy()


def removed_at_random(scores):
    """Scores of which a share, from none to all but one, is removed; and which are."""
    rows, vocab = scores.shape
    removed = torch.rand(rows, vocab) < torch.linspace(0, 1, rows)[:, None]
    removed[torch.arange(rows), torch.randint(0, vocab, (rows,))] = False
    return scores.masked_fill(removed, -torch.inf), removed


@pytest.mark.parametrize("vocab", [1, 2, 63, 1000])
def test_the_first_of_a_race_wins(vocab, seed):
    """Against noise in float64, made from the hash's words by its formula."""
    scores, removed = removed_at_random(torch.randn(200, vocab) * 3)
    keys, words = random_keys(200), token_words(vocab, CPU)
    x = (keyed(words, keys).numpy() & 0x7FFFFFFF).astype(np.float64)
    arrivals = np.log(-np.log1p(-(x + 0.5) / 2**31)) - scores.double().numpy()
    chosen = race(scores, keys)
    at_choice = arrivals[np.arange(200), chosen.numpy()]
    np.testing.assert_allclose(at_choice, arrivals.min(axis=1), atol=1e-5)
    assert not removed[torch.arange(200), chosen].any()


def test_draw_never_takes_a_removed_token(seed):
    scores, removed = removed_at_random(torch.randn(4000, 64) * 3)
    assert not removed[torch.arange(4000), draw(scores)].any()


def test_a_token_that_is_alone_is_drawn_whatever_the_noise(seed):
    alone = torch.randint(0, 300, (5000,))
    scores = torch.full((5000, 300), -torch.inf).scatter(1, alone[:, None], -40.0)
    assert torch.equal(draw(scores), alone)


@pytest.mark.parametrize("spread", [0.0, 2.0, 6.0], ids=["flat", "uneven", "peaked"])
def test_draw_follows_the_distribution(spread, seed):
    scores = torch.randn(150) * spread
    assert_drawn_from(draw_many(scores, 100_000), scores.double().softmax(0).numpy())


def test_a_rare_token_is_drawn_as_often_as_it_should_be(seed):
    scores = torch.tensor([0.0] + [-8.0] * 20)
    assert_drawn_from(draw_many(scores, 600_000), scores.double().softmax(0).numpy())


@pytest.mark.parametrize("spread", [0.0, 6.0], ids=["flat", "peaked"])
def test_draw_follows_the_distribution_of_a_large_vocabulary(spread, seed):
    scores = torch.randn(32_768) * spread
    ids, probs = draw_many(scores, 12_000), scores.double().softmax(0).numpy()
    assert_drawn_from(ids, probs)
    low, high = np.arange(32_768) % 256, np.arange(32_768) // 128  # most tokens are too rare to be counted one by one
    assert_drawn_from(low[ids], np.bincount(low, weights=probs))
    assert_drawn_from(high[ids], np.bincount(high, weights=probs))


def inversion(scores, numbers):
    """What sampling from a cumulative distribution does, one number per row."""
    until = scores.softmax(1).double().cumsum(1)
    return torch.searchsorted(until, (numbers[:, :1].double() / 2**32 + 0.5) * until[:, -1:])[:, 0]


def changed_draws(method, vocab, draws):
    """In how many draws another token is chosen when the scores have an error of 1e-6."""
    changed = 0
    for _ in range(draws // 250):
        scores = torch.randn(vocab) * 3
        numbers = random_keys(250)
        disturbed = scores + torch.randn(vocab) * 1e-6
        changed += int((method(scores.repeat(250, 1), numbers) != method(disturbed.repeat(250, 1), numbers)).sum())
    return changed


@pytest.mark.parametrize(("vocab", "draws"), [(4096, 100_000), (32_768, 20_000)])
def test_rounding_of_the_scores_changes_no_draw(vocab, draws, seed):
    """Expected are 0.06 and 0.01: about 6e-7 per draw. More than 2 happen in one of 30,000 runs."""
    assert changed_draws(race, vocab, draws) <= 2


def test_rounding_of_the_scores_would_change_draws_that_invert_the_distribution(seed):
    """The test above can fail."""
    assert changed_draws(inversion, 4096, 100_000) > 2


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_distribution_still_give_an_id_in_range(broken):
    chosen = draw(torch.full((50, 130), broken))
    assert ((chosen >= 0) & (chosen < 130)).all()


def test_argmax_and_argmin_take_the_first_of_equals():
    out = torch.empty(2, dtype=torch.int64)
    assert operators.argmax(torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0]]), out).tolist() == [1, 0]
    assert operators.argmin(torch.tensor([[1.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), out).tolist() == [1, 0]


def top_tokens(logprobs, wanted):
    """Of rows that nothing narrows: the gaps are the negative logprobs."""
    gaps = -logprobs
    least = choice.least_of_top(gaps, wanted)
    nothing = torch.zeros(len(gaps), 1)
    return choice.top_tokens([choice.within(gaps, nothing - torch.inf, least, nothing)], len(gaps))


def test_top_tokens_are_the_best_with_all_ties_in_order(seed):
    logprobs = torch.randint(0, 12, (40, 60)).float().log_softmax(1)  # few values: many ties
    wanted = np.random.default_rng(seed).integers(1, 7, 40)
    top = top_tokens(logprobs, wanted)
    ends = top.counts.cumsum()
    for row, end in enumerate(ends):
        values = logprobs[row].numpy()
        least = np.sort(values)[::-1][wanted[row] - 1]
        expected = sorted(np.flatnonzero(values >= least), key=lambda token: (-values[token], token))
        place = slice(end - top.counts[row], end)
        assert top.ids[place].tolist() == expected
        assert top.logprobs[place].tolist() == values[expected].tolist()
    assert top.counts.max() > wanted.max()


def test_top_tokens_never_name_a_removed_token_and_may_ask_for_more_than_there_are():
    logprobs = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf], [0.0, 1.0, 2.0, 3.0]]).log_softmax(1)
    top = top_tokens(logprobs, np.array([3, 9]))
    assert top.counts.tolist() == [2, 4]
    assert top.ids.tolist() == [1, 0, 3, 2, 1, 0]


def test_top_tokens_of_scores_that_are_no_numbers_are_none():
    top = top_tokens(torch.full((1, 5), torch.nan), np.array([2]))
    assert top.counts.tolist() == [0]
    assert len(top.ids) == len(top.logprobs) == 0
