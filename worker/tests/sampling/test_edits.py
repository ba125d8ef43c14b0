"""A client's own changes to the scores: they touch their row, at their time, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from millrace_worker.proto import worker_pb2
from millrace_worker.sampling import SampleContext, SamplingRows, sample

VOCAB, ROWS = 300, 6
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}


def edits(bias=(), shut_out=(), at_least=0) -> dict[str, Any]:
    return {
        "bias_token_ids": np.array([token for token, _ in bias], dtype="<u4").tobytes(),
        "bias_values": np.array([value for _, value in bias], dtype="<f4").tobytes(),
        "end_token_ids": np.array(shut_out, dtype="<u4").tobytes(),
        "min_new_tokens": at_least,
    }


def parameters(given: dict[str, Any]):
    return worker_pb2.Sampling(**{**NEUTRAL, **given})


def rows_with(given_per_row, num_prompt_tokens=5):
    state = SamplingRows(ROWS, "cpu")
    for row, given in enumerate(given_per_row):
        state.set(row, parameters(given), num_prompt_tokens)
    return state


def ids(state, logits, rows, positions):
    context = SampleContext(np.array(rows), np.array(positions), torch.zeros(ROWS, 64, dtype=torch.int32))
    sampled = sample(logits.clone(), context, state)
    return sampled.token_ids.tolist(), sampled.logprobs.clone()


def test_a_bias_is_added_to_the_raw_scores_of_its_row_alone(seed):
    logits = torch.randn(3, VOCAB)
    best = logits.argmax(1)
    state = rows_with([{}, edits([(7, 50.0), (8, -1.0)]), edits([(int(best[2]), -100.0)])])
    chosen, logprobs = ids(state, logits, [0, 1, 2], [5, 5, 5])
    expected = logits.clone()
    expected[1, 7] += 50
    expected[1, 8] -= 1
    expected[2, best[2]] -= 100
    assert chosen == expected.argmax(1).tolist()
    assert chosen[0] == best[0]
    assert chosen[1] == 7
    assert chosen[2] != best[2]
    torch.testing.assert_close(logprobs, expected.log_softmax(1).amax(1))


def test_a_biased_row_draws_the_same_in_any_company(seed):
    logits = torch.randn(2, VOCAB)
    sampled: dict[str, Any] = {"do_sample": True, "seed": seed, "top_k": 40}
    state = rows_with([{}, sampled | edits([(token, 2.0) for token in range(9)], [1], 3)])
    together, _ = ids(state, logits, [0, 1], [5, 6])
    alone, _ = ids(state, logits[1:], [1], [6])
    assert together[1] == alone[0]


def test_tokens_stay_out_until_the_output_is_long_enough(seed):
    logits = torch.randn(1, VOCAB)
    logits[0, [1, 4]] = 100.0
    state = rows_with([edits(shut_out=[1, 4], at_least=3)], num_prompt_tokens=5)
    chosen = [ids(state, logits, [0], [position])[0][0] for position in range(5, 10)]
    assert all(token not in (1, 4) for token in chosen[:3])
    assert all(token in (1, 4) for token in chosen[3:])


def test_a_row_that_changes_hands_keeps_no_edits():
    logits = torch.randn(1, VOCAB)
    state = rows_with([edits([(7, 100.0)])])
    assert ids(state, logits, [0], [5])[0] == [7]
    state.clear([0])
    state.set(0, parameters({}), 5)
    assert ids(state, logits, [0], [5])[0] == [int(logits.argmax())]
    state.set(0, parameters(edits([(9, 100.0)])), 5)
    assert ids(state, logits, [0], [5])[0] == [9]


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_what_is_no_bias_is_refused(bias):
    with pytest.raises(ValueError, match="bias_values"):
        rows_with([edits([(1, bias)])])
    with pytest.raises(ValueError, match="bias_token_ids has 1"):
        rows_with([edits([(1, 1.0)]) | {"bias_values": b""}])
