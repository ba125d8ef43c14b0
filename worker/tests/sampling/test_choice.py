"""Drawing by inversion, its edges, and the top tokens with their ties."""

import numpy as np
import pytest
import torch
from millrace_worker.sampling import choice

from .reference import assert_drawn_from

LARGEST = 1 - 2.0**-53  # the largest number the noise can give


def draw(scores, numbers):
    return choice.draw(scores, torch.tensor(numbers, dtype=torch.float64))


def in_order_of_draw(vocab):
    """The tokens in the order in which `draw` lays them out: by their group, then by id."""
    groups = -(-vocab // choice.GROUP)
    return torch.tensor(sorted(range(vocab), key=lambda token: (token % groups, token)))


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000])
def test_draw_inverts_the_cumulative_distribution(vocab, seed):
    scores, numbers = torch.randn(16, vocab) * 3, torch.rand(16, dtype=torch.float64)
    chosen = choice.draw(scores, numbers)
    order = in_order_of_draw(vocab)
    until = scores.double().softmax(1)[:, order].cumsum(1)
    place = (order == chosen[:, None]).nonzero()[:, 1:]
    upper = until.gather(1, place)[:, 0]
    lower = torch.where(place[:, 0] > 0, until.gather(1, (place - 1).clamp(min=0))[:, 0], 0.0)
    assert (lower <= numbers + 1e-6).all()
    assert (numbers <= upper + 1e-6).all()


@pytest.mark.parametrize("vocab", [50, 64, 1000])
def test_draw_never_takes_a_removed_token(vocab, seed):
    scores = torch.randn(400, vocab) * 3
    removed = torch.rand(400, vocab) < torch.linspace(0, 1, 400)[:, None]
    removed[torch.arange(400), torch.randint(0, vocab, (400,))] = False
    scores = scores.masked_fill(removed, -torch.inf)
    for number in (0.0, 2.0**-53, 0.5, LARGEST):
        chosen = draw(scores, [number] * 400)
        assert not removed[torch.arange(400), chosen].any()


def test_the_smallest_and_largest_numbers_take_the_first_and_last_possible_token():
    scores = torch.full((1, 256), -torch.inf)  # 4 groups
    scores[0, [70, 71, 150]] = 0.0
    assert draw(scores, [0.0]).item() == 70  # 70 % 4 == 2
    assert draw(scores, [0.5]).item() == 150  # 150 % 4 == 2
    assert draw(scores, [LARGEST]).item() == 71  # 71 % 4 == 3


def test_draw_follows_the_distribution(seed):
    scores = torch.randn(150) * 2
    numbers = torch.rand(40_000, dtype=torch.float64)
    chosen = torch.cat([choice.draw(scores.expand(1000, -1), part) for part in numbers.split(1000)])
    assert_drawn_from(chosen.numpy(), scores.double().softmax(0).numpy())


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_no_distribution_still_give_an_id_in_range(broken):
    scores = torch.full((3, 130), broken)
    assert ((draw(scores, [0.0, 0.5, LARGEST]) >= 0) & (draw(scores, [0.0, 0.5, LARGEST]) < 130)).all()


def test_argmax_takes_the_first_of_equals():
    assert choice.argmax(torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


def test_top_tokens_are_the_best_with_all_ties_in_order(seed):
    logprobs = torch.randint(0, 12, (40, 60)).float().log_softmax(1)  # few values: many ties
    wanted = np.random.default_rng(seed).integers(1, 7, 40)
    top = choice.top_tokens(logprobs, wanted)
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
    top = choice.top_tokens(logprobs, np.array([3, 9]))
    assert top.counts.tolist() == [2, 4]
    assert top.ids.tolist() == [1, 0, 3, 2, 1, 0]


def test_top_tokens_of_scores_that_are_no_numbers_are_none():
    top = choice.top_tokens(torch.full((1, 5), torch.nan), np.array([2]))
    assert top.counts.tolist() == [0]
    assert len(top.ids) == len(top.logprobs) == 0
