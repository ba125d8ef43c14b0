"""Native sampling against that by torch: the same tokens for random parameters, on every instruction-set level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from millrace_kernels import Machine
from millrace_kernels import Sampler as Kernel
from millrace_worker.proto import worker_pb2
from millrace_worker.sampling import SampleContext, Sampled, SamplingRows, Watermark, sample
from torch import Tensor

MAX_ROWS, LENGTH = 24, 30
NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
WATERMARK = Watermark(gamma=0.3, delta=1.5)


def random_parameters(rng: np.random.Generator) -> dict[str, Any]:
    """Any features together, each with a probability of a third."""
    drawn = {
        "temperature": float(rng.uniform(0.2, 2.5)),
        "top_k": int(rng.choice([1, 2, 5, 50, 200, 5000])),
        "top_p": float(rng.uniform(0.01, 0.999)),
        "typical_p": float(rng.uniform(0.05, 0.99)),
        "min_p": float(rng.choice([1e-6, 0.01, 0.3, 1.0])),
        "repetition_penalty": float(rng.uniform(0.7, 1.6)),
        "frequency_penalty": float(rng.uniform(-1, 2)),
        "presence_penalty": float(rng.uniform(-1, 1)),
        "count_penalty": float(rng.uniform(-0.5, 0.5)),
        "watermark": True,
        "top_n_tokens": int(rng.integers(1, 6)),
    }
    asked = {name: value for name, value in drawn.items() if rng.random() < 1 / 3}
    return {
        **NEUTRAL,
        **asked,
        "do_sample": bool(rng.random() < 0.7),
        "seed": int(rng.integers(2**64, dtype=np.uint64)),
    }


def random_scores(rng: np.random.Generator, rows: int, vocab: int) -> Tensor:
    """Peaked and flat ones, some with many equal scores, some with impossible tokens."""
    scores = rng.normal(0, 1, (rows, vocab)) * rng.choice([0.0, 0.3, 2.0, 8.0, 60.0], (rows, 1))
    coarse = rng.random(rows) < 0.3
    scores[coarse] = np.round(scores[coarse] * 2) / 2
    shut = rng.random((rows, vocab)) < rng.choice([0.0, 0.5, 0.99], (rows, 1))
    shut[np.arange(rows), rng.integers(0, vocab, rows)] = False
    scores[shut] = -np.inf
    return torch.from_numpy(scores.astype(np.float32))


class Pair:
    """The same rows twice: sampled by torch, and by a machine's kernels."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.sides = [SamplingRows(MAX_ROWS, "cpu", WATERMARK, kernels) for kernels in (None, machine)]

    def run(self, rows: int, vocab: int, scores: Tensor | None = None) -> list[Sampled]:
        rng = self.rng
        chosen, positions = rng.permutation(MAX_ROWS)[:rows], rng.integers(2, LENGTH, rows)
        token_ids = np.full((MAX_ROWS, LENGTH), 2**40)
        for row, position in zip(chosen.tolist(), positions.tolist(), strict=True):
            token_ids[row, :position] = rng.integers(0, min(vocab, 20), position)
            parameters = worker_pb2.Sampling(**random_parameters(rng))
            prompt = int(rng.integers(1, position))
            for side in self.sides:
                side.set(row, parameters, prompt)
        context = SampleContext(chosen, positions, torch.from_numpy(token_ids))
        scores = random_scores(rng, rows, vocab) if scores is None else scores
        # Ranks' columns side by side may be more than there are tokens.
        wide = torch.full((rows, vocab + int(rng.choice([0, 3]))), torch.nan)
        wide[:, :vocab] = scores
        return [sample(wide.clone()[:, :vocab], context, side) for side in self.sides]


def tops_of(sampled: Sampled, rows: int) -> list[dict[int, float]]:
    if sampled.top_tokens is None:
        return [{} for _ in range(rows)]
    top = sampled.top_tokens
    ends = top.counts.cumsum()
    parts = [slice(end - count, end) for end, count in zip(ends, top.counts, strict=True)]
    return [dict(zip(top.ids[part].tolist(), top.logprobs[part].tolist(), strict=True)) for part in parts]


@pytest.mark.parametrize("vocab", [1, 2, 17, 300, 2600])
def test_the_same_tokens_as_by_torch(machine: Machine, vocab: int) -> None:
    """Sums that round otherwise may move a cut by a token, where tokens are many and weigh little: its logprobs differ
    by as little."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    pair, exact, others = Pair(machine, seed), 0, 0
    for _ in range(4):
        theirs, ours = pair.run(20, vocab)
        same = ours.token_ids == theirs.token_ids
        others += int((~same).sum())
        assert torch.isfinite(ours.logprobs).all()
        torch.testing.assert_close(ours.logprobs[same], theirs.logprobs[same], atol=5e-3, rtol=0)
        exact += int(torch.isclose(ours.logprobs, theirs.logprobs, atol=2e-5, rtol=2e-6).sum())
        for found, wanted, is_same in zip(tops_of(ours, 20), tops_of(theirs, 20), same.tolist(), strict=True):
            if is_same:
                assert found.keys() == wanted.keys(), f"seed {seed}"
                assert found == pytest.approx(wanted, abs=5e-3)
    # Where the first two of a race are as near as two logarithms of the same number, either may win.
    assert (exact >= 78, others <= 1) == (True, True), f"seed {seed}"


def test_best_tokens_come_in_their_order(machine: Machine) -> None:
    state = SamplingRows(2, "cpu", kernels=machine)
    state.set(1, worker_pb2.Sampling(**NEUTRAL, top_n_tokens=3), 1)
    scores = torch.tensor([[0.0] * 6, [1.0, 3.0, 2.0, 3.0, 2.0, 0.0]])
    context = SampleContext(np.array([0, 1]), np.array([1, 1]), torch.zeros(2, 2, dtype=torch.int64))
    found = sample(scores, context, state)
    assert found.token_ids.tolist() == [0, 1]
    assert found.top_tokens is not None
    assert found.top_tokens.counts.tolist() == [0, 4]
    assert found.top_tokens.ids.tolist() == [1, 3, 2, 4]
    torch.testing.assert_close(
        torch.from_numpy(found.top_tokens.logprobs.copy()), scores[1].log_softmax(0)[[1, 3, 2, 4]]
    )


def test_broken_scores_are_reported_and_leave_the_others_alone(machine: Machine) -> None:
    pair = Pair(machine, 7)
    scores = random_scores(pair.rng, 12, 700)
    scores[0, 5], scores[3, 699], scores[7] = torch.nan, torch.inf, -torch.inf
    theirs, ours = pair.run(12, 700, scores)
    assert ours.logprobs.isnan().tolist() == [row in (0, 3, 7) for row in range(12)]
    assert theirs.logprobs.isnan().tolist() == ours.logprobs.isnan().tolist()
    assert ((ours.token_ids >= 0) & (ours.token_ids < 700)).all()
    whole = [row for row in range(12) if row not in (0, 3, 7)]
    assert ours.token_ids[whole].tolist() == theirs.token_ids[whole].tolist()


def test_scores_stay_as_they_are(machine: Machine) -> None:
    pair = Pair(machine, 3)
    scores = random_scores(pair.rng, 8, 500)
    pair.sides = pair.sides[1:]
    before = scores.clone()
    context = SampleContext(np.arange(8), np.full(8, 1), torch.zeros(MAX_ROWS, 2, dtype=torch.int64))
    sample(scores, context, pair.sides[0])
    assert torch.equal(scores, before)


def test_what_the_kernel_cannot_know_is_refused() -> None:
    machine = Machine(None, 1, 0, 0)
    state = SamplingRows(1, "cpu", kernels=machine)
    context = SampleContext(np.array([0]), np.array([1]), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="are float32"):
        sample(torch.zeros(1, 4).double(), context, state)
    kernel = Kernel(machine, (0, 0.0))
    numbers, whole, step = np.ones((1, 8), np.float32), np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64)
    scores, out = torch.zeros(1, 4), (torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    to = (out[0].data_ptr(), out[1].data_ptr())
    at = (scores.data_ptr(), 1, 4)
    with pytest.raises(ValueError, match="1 rows have 8 columns"):
        kernel.sample(at, (numbers[:, :7].copy(), whole), step, (0, 0), to)
    whole[0, 0] = 2
    with pytest.raises(ValueError, match="nobody counts"):
        kernel.sample(at, (numbers, whole), step, (0, 0), to)
    whole[0, :2] = 0, -1
    with pytest.raises(ValueError, match="top-k -1"):
        kernel.sample(at, (numbers, whole), step, (0, 0), to)
