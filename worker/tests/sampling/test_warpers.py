"""Each warper against the one of transformers, on fresh random scores."""

import pytest
import torch
from millrace_worker.sampling import operators
from millrace_worker.sampling.narrowing import HEAD, Limits, Sorted, narrow
from millrace_worker.sampling.sampler import scaled_gaps
from millrace_worker.sampling.workspace import Workspace
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

SHAPES = [(1, 50), (5, 257), (16, 1000)]
NOWHERE = torch.zeros(1, 1, dtype=torch.int64)


def narrowed(scores, head=None, **given):
    """Scores with -inf where a token was removed, from their best `head` tokens alone if given; what is certain."""
    rows = len(scores)
    limits = Limits(
        top_k=given.get("top_k", torch.zeros(rows, 1, dtype=torch.int64)),
        top_p=given.get("top_p", torch.ones(rows, 1)),
        typical_p=given.get("typical_p", torch.ones(rows, 1)),
        spread=-given.get("min_p", torch.zeros(rows, 1)).log(),
        any_typical="typical_p" in given,
    )
    gaps = scaled_gaps(scores.clone(), torch.ones(rows, 1))
    ordered = operators.sort(gaps, torch.empty_like(gaps))[:, :head].contiguous()
    weights = torch.exp(-ordered)
    sums = operators.prefix_sums(weights, torch.empty(rows, ordered.shape[1] + 1, dtype=torch.float64))
    total = torch.exp(-gaps).sum(1, keepdim=True)
    kept = narrow(Sorted(ordered, weights, sums, total, whole=head is None), limits, Workspace("cpu"))
    inside = (gaps >= kept.near) & (gaps <= kept.far)
    certain = kept.certain[:, 0]
    assert torch.equal(inside.sum(1)[certain], (kept.end - kept.first)[certain, 0])
    mass = torch.where(inside, torch.exp(-gaps.double()), 0).sum(1)
    torch.testing.assert_close(kept.mass[certain, 0], mass[certain], rtol=1e-5, atol=0)
    return torch.where(inside, scores, -torch.inf), certain


def warp(scores, **given):
    ours, certain = narrowed(scores, **given)
    assert certain.all()
    return ours


def random_scores(rows, vocab, spread=3.0):
    return torch.randn(rows, vocab) * spread


def by_rows(make, parameters, scores):
    """transformers' warpers know one parameter for the whole batch: apply one per row."""
    return torch.cat([make(p)(NOWHERE, scores[row : row + 1].clone()) for row, p in enumerate(parameters)])


def column(parameters):
    return torch.tensor(parameters, dtype=torch.float32)[:, None]


def random_shares(rows):
    return (torch.rand(rows) * 0.98 + 0.01).tolist()


def assert_same_tokens_kept(ours, theirs, doubtful):
    """`doubtful` marks tokens so near to the threshold that rounding decides about them."""
    differs = ours.isinf() != theirs.isinf()
    assert not (differs & ~doubtful).any()
    both = ~ours.isinf() & ~theirs.isinf()
    assert torch.equal(ours[both], theirs[both])
    assert (~ours.isinf()).any(dim=1).all()
    assert not ours.isnan().any()


def near_mass(distance_SV, probs_SV, mass_S1, error=0.0):
    """Tokens before which the probability, summed in the order of `distance`, is within 1e-5 of the mass.

    Also those whose distance is within `error` of the one before or after: chance decides about their order.
    """
    sorted_SV, order = distance_SV.double().sort(dim=1)
    probs = probs_SV.double().gather(1, order)
    near = (probs.cumsum(dim=1) - probs - mass_S1).abs() < 1e-5
    even = sorted_SV.diff(dim=1) <= error
    near[:, 1:] |= even
    near[:, :-1] |= even
    return torch.zeros_like(near).scatter(1, order, near)


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_temperature(rows, vocab, seed):
    scores, parameters = random_scores(rows, vocab), (torch.rand(rows) * 2 + 0.05).tolist()
    ours = -scaled_gaps(scores.clone(), column(parameters))
    theirs = by_rows(TemperatureLogitsWarper, parameters, scores)
    torch.testing.assert_close(ours.log_softmax(1), theirs.log_softmax(1), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("extreme", [1e-45, 1e-38, 1e-10, 1e30])
def test_any_temperature_above_zero_gives_a_distribution(extreme, seed):
    ours = (-scaled_gaps(random_scores(4, 100, spread=100.0), column([extreme] * 4))).softmax(1)
    torch.testing.assert_close(ours.sum(1), torch.ones(4))


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_top_k(rows, vocab, seed):
    scores = random_scores(rows, vocab)
    k = torch.randint(1, vocab + 1, (rows,))
    ours = warp(scores, top_k=k[:, None])
    assert torch.equal(ours, by_rows(TopKLogitsWarper, k.tolist(), scores))


def test_top_k_keeps_equals_of_the_last_and_may_exceed_the_vocabulary():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    ours = warp(scores, top_k=torch.tensor([[2], [9]]))
    assert ours[0].isinf().tolist() == [True, False, False, False, True]
    assert torch.equal(ours[1], scores[1])


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
@pytest.mark.parametrize("spread", [0.01, 3.0], ids=["flat", "peaked"])
def test_top_p(rows, vocab, spread, seed):
    scores, parameters = random_scores(rows, vocab, spread), random_shares(rows)
    ours = warp(scores, top_p=column(parameters))
    theirs = by_rows(TopPLogitsWarper, parameters, scores)
    assert_same_tokens_kept(ours, theirs, near_mass(-scores, scores.softmax(1), column(parameters)))


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 8.0])
def test_what_is_certain_about_the_best_tokens_is_what_sorting_all_gives(spread, seed):
    """Any company of limits; a row is certain whatever its neighbours ask for."""
    rows, vocab = 120, 500
    scores = (random_scores(rows, vocab, spread) * 8).round() / 8  # with ties
    given = {
        "top_k": torch.randint(1, 2 * HEAD, (rows, 1)) * (torch.rand(rows, 1) < 0.5),
        "top_p": torch.where(torch.rand(rows, 1) < 0.5, column(random_shares(rows)), 1.0),
        "typical_p": torch.where(torch.rand(rows, 1) < 0.3, column(random_shares(rows)), 1.0),
        "min_p": torch.where(torch.rand(rows, 1) < 0.3, column(random_shares(rows)), 0.0),
    }
    whole = warp(scores, **given)
    ours, certain = narrowed(scores, head=HEAD, **given)
    assert torch.equal(ours[certain], whole[certain])
    assert certain[(given["top_k"][:, 0] > 0) & (given["top_k"][:, 0] < HEAD // 2)].float().mean() > 0.5 or spread < 1
    for row in range(0, rows, 7):
        one = {name: value[row : row + 1] for name, value in given.items()}
        alone, alone_certain = narrowed(scores[row : row + 1], head=HEAD, **one)
        assert bool(alone_certain) == bool(certain[row])
        if alone_certain:
            assert torch.equal(alone[0], ours[row])


def test_top_p_keeps_equals_and_at_least_the_best():
    scores = torch.tensor([[2.0, 2.0, -9.0], [0.0, 5.0, 0.0]])
    kept = ~warp(scores, top_p=column([0.3, 1e-9])).isinf()
    assert kept.tolist() == [[True, True, False], [False, True, False]]


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_typical_p(rows, vocab, seed):
    scores, parameters = random_scores(rows, vocab), random_shares(rows)
    scores = warp(scores, top_k=torch.full((rows, 1), vocab - 3))  # removed tokens must not disturb
    ours = warp(scores, typical_p=column(parameters))
    theirs = by_rows(TypicalLogitsWarper, parameters, scores)
    logprobs = scores.double().log_softmax(1)
    entropy = -(logprobs * logprobs.exp()).nansum(1, keepdim=True)
    doubtful = near_mass((-logprobs - entropy).abs(), logprobs.exp(), column(parameters), error=1e-5)
    assert_same_tokens_kept(ours, theirs, doubtful)


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_min_p(rows, vocab, seed):
    scores, parameters = random_scores(rows, vocab), random_shares(rows)
    ours = warp(scores, min_p=column(parameters))
    theirs = by_rows(MinPLogitsWarper, parameters, scores)
    probs = scores.double().softmax(1)
    ratio = probs / probs.amax(1, keepdim=True)
    assert_same_tokens_kept(ours, theirs, (ratio / column(parameters) - 1).abs() < 1e-5)
