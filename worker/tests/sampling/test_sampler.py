"""A whole sampling step: what a row gets depends on the row alone, and is what its parameters say."""

import numpy as np
import pytest
import torch
from millrace_worker.proto import worker_pb2
from millrace_worker.sampling import SampleContext, SamplingRows, sample
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from .reference import assert_drawn_from, transform

VOCAB, LENGTH, MAX_ROWS = 777, 48, 32
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
EVERYTHING = {
    "do_sample": True, "temperature": 2.5, "top_k": 100, "top_p": 0.95, "typical_p": 0.95, "min_p": 0.001,
    "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2, "count_penalty": 0.1,
    "watermark": True, "top_n_tokens": 4,
}  # fmt: skip
VARIANTS = [
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.95},
    {"do_sample": True, "top_k": 20},
    {"do_sample": True, "typical_p": 0.7},
    {"do_sample": True, "min_p": 0.05, "top_n_tokens": 2},
    {"do_sample": True, "temperature": 1.7, "top_p": 0.999},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 1.0, "top_n_tokens": 5},
    {"presence_penalty": -0.5, "count_penalty": 0.5},
    {"do_sample": True, "watermark": True},
    EVERYTHING,
]


def sampling(**given):
    return worker_pb2.Sampling(**{**NEUTRAL, **given})


class Case:
    """Rows with parameters, histories whose rest is poisoned, and logits; `run` samples any of them together."""

    def __init__(self, parameters, seed, kernels):
        rng = np.random.default_rng(seed)
        count = len(parameters)
        self.state = SamplingRows(MAX_ROWS, "cpu", kernels=kernels)
        self.rows = rng.permutation(MAX_ROWS)[:count]
        self.positions = rng.integers(2, LENGTH + 1, count)
        self.logits = torch.from_numpy(rng.normal(0, 3, (count, VOCAB)).astype(np.float32))
        token_ids = np.full((MAX_ROWS, LENGTH + 1), 2**40)
        for row, position, given in zip(self.rows, self.positions, parameters, strict=True):
            token_ids[row, :position] = rng.integers(0, VOCAB, position)
            seed_of_row = int(rng.integers(0, 2**64, dtype=np.uint64))
            self.state.set(row, sampling(seed=seed_of_row, **given), int(rng.integers(1, position)))
        self.token_ids = torch.from_numpy(token_ids)

    def run(self, places):
        """(id, logprob bits, top tokens) of each of the places, sampled in one step in this order."""
        places = np.asarray(places)
        context = SampleContext(self.rows[places], self.positions[places], self.token_ids)
        sampled = sample(self.logits[places].clone(), context, self.state)
        assert sampled.token_ids.dtype == torch.int64
        assert sampled.logprobs.dtype == torch.float32
        top, ends = sampled.top_tokens, np.zeros(len(places), dtype=np.int64)
        if top is not None:
            ends = top.counts.cumsum()
        answers = []
        for index, (token, logprob) in enumerate(zip(sampled.token_ids, sampled.logprobs, strict=True)):
            assert torch.isfinite(logprob)
            if top is None:
                best = []
            else:
                part = slice(ends[index] - top.counts[index], ends[index])
                best = list(zip(top.ids[part].tolist(), top.logprobs[part].tolist(), strict=True))
            answers.append((int(token), logprob.numpy().tobytes(), best))
        return answers


def test_a_row_gets_the_same_bits_alone_and_among_neighbours_with_other_features(seed, kernels):
    rng = np.random.default_rng(seed)
    case = Case([VARIANTS[index % len(VARIANTS)] for index in range(16)], seed, kernels)
    alone = [case.run([place])[0] for place in range(16)]
    for _ in range(12):
        together = rng.permutation(16)[: rng.integers(2, 17)]
        assert case.run(together) == [alone[place] for place in together]


def test_a_step_that_is_computed_again_gives_the_same_bits(seed, kernels):
    case = Case([EVERYTHING, {"do_sample": True}, {}], seed, kernels)
    first = case.run([0, 1, 2])
    further = SampleContext(case.rows, case.positions + 200, torch.zeros(MAX_ROWS, LENGTH + 201, dtype=torch.int64))
    sample(case.logits.clone(), further, case.state)  # the sequences went on, and then were preempted
    assert case.run([2, 0, 1]) == [first[2], first[0], first[1]]
    restarted = Case([EVERYTHING, {"do_sample": True}, {}], seed, kernels)
    assert restarted.run([0, 1, 2]) == first


def test_greedy_rows_take_the_argmax_and_its_log_softmax(seed, kernels):
    case = Case([{}] * 5, seed, kernels)
    before = case.logits.clone()
    context = SampleContext(case.rows, case.positions, case.token_ids)
    sampled = sample(case.logits, context, case.state)
    assert sampled.token_ids.tolist() == before.argmax(1).tolist()
    torch.testing.assert_close(sampled.logprobs, before.log_softmax(1).amax(1))
    assert sampled.top_tokens is None


EXTREMES: dict[str, list[float]] = {
    "temperature": [1e-45, 3e38],
    "top_k": [1, VOCAB - 1, 2**31 - 1],
    "top_p": [1e-45, 1e-20, 1 - 2**-24],
    "typical_p": [1e-45, 1e-20, 1 - 2**-24],
    "min_p": [1e-45, 1.0],
    "repetition_penalty": [1e-45, 1e-20, 3e38],
    "frequency_penalty": [-2.0, 2.0],
    "presence_penalty": [-2.0, 2.0],
}


@pytest.mark.parametrize("number_of_extremes", [1, 2, 3, 8])
def test_the_smallest_and_largest_of_what_is_allowed_leaves_a_token(number_of_extremes, seed, kernels):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        given: list[dict] = [{"do_sample": bool(rng.integers(2)), "top_n_tokens": 3} for _ in range(16)]
        for row in given:
            for name in rng.choice(list(EXTREMES), number_of_extremes, replace=False):
                row[name] = EXTREMES[name][rng.integers(len(EXTREMES[name]))]
        for token, _, _ in Case(given, int(rng.integers(2**32)), kernels).run(range(16)):  # its logprob is a number
            assert 0 <= token < VOCAB


@pytest.mark.parametrize("share", [1e-45, 1e-30, 1e-20])
def test_the_smallest_typical_share_leaves_the_token_nearest_to_the_entropy(share, seed, kernels):
    case = Case([{"do_sample": True, "typical_p": share}] * 16, seed, kernels)
    logprobs = case.logits.double().log_softmax(1)
    entropy = -(logprobs.exp() * logprobs).sum(1)
    distances = (-logprobs - entropy[:, None]).abs()
    for row, (token, _, _) in enumerate(case.run(range(16))):
        assert distances[row, token] <= distances[row].min() + 1e-5


def reference_scores(case, place, given):
    """The features in the contract's order, each by transformers or by hand; a watermark is not among them."""
    history = case.token_ids[case.rows[place], : case.positions[place]]
    scores = case.logits[place : place + 1].double()
    scores = RepetitionPenaltyLogitsProcessor(given["repetition_penalty"])(history[None], scores)
    counts = torch.bincount(history, minlength=VOCAB)
    scores = scores - given["frequency_penalty"] * counts / len(history)
    output = torch.bincount(history[case.state.num_prompt_tokens[case.rows[place]] :], minlength=VOCAB)
    scores = scores - given["presence_penalty"] * (output > 0) - given["count_penalty"] * output
    for warper in (
        TemperatureLogitsWarper(given["temperature"]),
        TopKLogitsWarper(given["top_k"]),
        TopPLogitsWarper(given["top_p"]),
        TypicalLogitsWarper(given["typical_p"]),
        MinPLogitsWarper(given["min_p"]),
    ):
        scores = warper(history[None], scores)
    return scores[0]


@pytest.mark.parametrize("do_sample", [True, False])
def test_features_apply_in_the_order_of_the_contract(do_sample, seed, kernels):
    given = {**EVERYTHING, "watermark": False, "do_sample": do_sample}
    case = Case([given] * 8, seed, kernels)
    for place, (token, bits, top) in enumerate(case.run(range(8))):
        logprobs = reference_scores(case, place, given).log_softmax(0)
        # A cut may move by a token that weighs little.
        assert np.frombuffer(bits, np.float32)[0] == pytest.approx(float(logprobs[token]), abs=5e-3)
        if not do_sample:
            assert token == int(logprobs.argmax())
        best = logprobs.topk(min(4, int(logprobs.isfinite().sum())))
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=5e-3)
        assert [token for token, _ in top] == best.indices.tolist()


@pytest.mark.parametrize("given", [{}, {"temperature": 0.7, "top_k": 30, "top_p": 0.8}, {"typical_p": 0.6}])
def test_tokens_are_drawn_from_the_processed_distribution(given, seed, kernels):
    """Many seeds and positions, one distribution."""
    vocab, rows = 60, 200
    logits = torch.randn(vocab) * 2
    state = SamplingRows(rows, "cpu", kernels=kernels)
    for row in range(rows):
        state.set(row, sampling(do_sample=True, seed=seed * rows + row, **given), 1)
    token_ids = torch.zeros(rows, 200, dtype=torch.int64)
    ids = []
    for position in range(60, 160):
        context = SampleContext(np.arange(rows), np.full(rows, position), token_ids)
        ids.append(sample(logits.repeat(rows, 1), context, state).token_ids.clone())
    scores = logits[None].clone()
    warpers = []
    if "top_k" in given:
        warpers += [TemperatureLogitsWarper(given["temperature"]), TopKLogitsWarper(given["top_k"])]
        warpers += [TopPLogitsWarper(given["top_p"])]
    if "typical_p" in given:
        warpers += [TypicalLogitsWarper(given["typical_p"])]
    for warper in warpers:
        scores = transform(warper, token_ids, scores)
    assert_drawn_from(torch.cat(ids).numpy(), scores[0].double().softmax(0).numpy())


def test_broken_scores_of_one_row_are_reported_there_and_leave_the_others_alone(seed, kernels):
    case = Case([{"do_sample": True}, EVERYTHING, {}, EVERYTHING, {"do_sample": True, "top_p": 0.5}], seed, kernels)
    whole = [1, 4]
    expected = case.run(whole)
    broken = case.logits.clone()
    broken[0], broken[2, 5], broken[3, 9] = torch.nan, torch.nan, torch.inf
    sampled = sample(broken, SampleContext(case.rows, case.positions, case.token_ids), case.state)
    assert sampled.logprobs.isnan().tolist() == [True, False, True, True, False]
    assert ((sampled.token_ids >= 0) & (sampled.token_ids < VOCAB)).all()
    assert sampled.token_ids[whole].tolist() == [token for token, _, _ in expected]
    assert sampled.top_tokens is not None
    assert sampled.top_tokens.counts.tolist() == [0, 4, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0), ("temperature", -1.0), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_p", 0.0), ("top_p", 1.5), ("typical_p", 0.0), ("typical_p", 1.01), ("min_p", -0.1), ("min_p", 2.0),
        ("repetition_penalty", 0.0), ("frequency_penalty", float("inf")), ("presence_penalty", float("nan")),
        ("count_penalty", float("-inf")),
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused_by_name_and_changes_nothing(name, value):
    state = SamplingRows(2, "cpu")
    state.set(1, sampling(do_sample=True, top_k=3), 1)
    before = state.features.copy()
    with pytest.raises(ValueError, match=name):
        state.set(1, sampling(**{name: value}), 1)
    assert state.features.tolist() == before.tolist()


def test_a_cleared_row_and_its_next_sequence_have_nothing_of_the_former(seed, kernels):
    case = Case([{}], seed, kernels)
    greedy = case.run([0])
    row = int(case.rows[0])
    case.state.set(row, sampling(seed=3, **EVERYTHING), 1)
    case.run([0])
    case.state.clear(case.rows)
    assert case.run([0]) == greedy
    case.state.set(row, sampling(seed=3), 1)
    assert case.run([0]) == greedy


def test_the_whole_range_of_seeds_is_taken(kernels):
    state = SamplingRows(1, "cpu", kernels=kernels)
    context = SampleContext(np.array([0]), np.array([1]), torch.zeros(1, 2, dtype=torch.int64))
    logits = torch.zeros(1, 5000)
    drawn = set()
    for seed in (0, 1, 2**32, 2**63, 2**64 - 1):
        state.set(0, sampling(do_sample=True, seed=seed), 1)
        drawn.add(int(sample(logits.clone(), context, state).token_ids[0]))
    assert len(drawn) == 5
