"""The engine's tokens against transformers' greedy search, however a router cuts the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from millrace_worker import runner

from .conftest import VOCAB, Bench, Reference
from .plans import Answers, greedy, read_f32, read_u32


def _prompt(rng: np.random.Generator, length: int) -> list[int]:
    return rng.integers(0, VOCAB, length).tolist()


def test_prompts_around_a_page_decode_together_as_alone(bench: Bench, reference: Reference) -> None:
    rng = np.random.default_rng()
    prompts = {row: _prompt(rng, length) for row, length in enumerate((1, 15, 16, 17))}
    answers = Answers()
    for row, prompt in prompts.items():
        bench.book.admit(row, prompt)
        bench.book.work(row)
    for _ in range(20):
        bench.book.plan_and(bench.engine, answers)
        for row in prompts:
            bench.book.work(row)
    assert {row: len(ids) for row, ids in answers.token_ids.items()} == dict.fromkeys(prompts, 20)
    assert all(reference.follows(prompt, answers.token_ids[row]) for row, prompt in prompts.items())


def test_random_chunks_while_others_come_and_go(bench: Bench, reference: Reference) -> None:
    rng = np.random.default_rng()
    waiting = [_prompt(rng, int(length)) for length in rng.integers(1, 70, 14)]
    answers, running, generated = Answers(), {}, {}
    while waiting or running:
        for row in range(5):
            if row not in running and waiting and rng.random() < 0.6:
                running[row] = (waiting.pop(), int(rng.integers(1, 12)))
                answers.token_ids[row] = []
                bench.book.admit(row, running[row][0])
        budget = 64
        for row in rng.permutation(sorted(running)).tolist():
            if budget and rng.random() < 0.8:
                before = bench.book.held[row].computed
                bench.book.work(row, int(rng.integers(1, min(budget, 20) + 1)))
                budget -= bench.book.held[row].computed - before
        bench.book.plan_and(bench.engine, answers)
        for row, (prompt, wanted) in list(running.items()):
            if len(answers.token_ids[row]) >= wanted:
                generated[tuple(prompt)] = answers.token_ids[row][:wanted]
                bench.book.release(row)
                del running[row]
    assert answers.failed == {}
    assert all(reference.follows(list(prompt), ids) for prompt, ids in generated.items())
    other = {prompt: [(each + 1) % VOCAB for each in ids] for prompt, ids in generated.items()}
    assert not any(reference.follows(list(prompt), ids) for prompt, ids in other.items())


def test_plans_need_no_result(bench: Bench, reference: Reference) -> None:
    """Every plan is written before the first is computed: the sampled token never passes through the router."""
    prompts = {0: [5, 6, 7], 3: list(range(30))}
    for row, prompt in prompts.items():
        bench.book.admit(row, prompt)
    plans = []
    for _ in range(12):
        for row in prompts:
            bench.book.work(row)
        plans.append(bench.book.plan())
    answers = Answers()
    for plan, result in [(plan, bench.engine.compute(plan)) for plan in plans]:
        answers.read(plan, result)
    assert answers.token_ids == {row: reference.greedy(prompt, 12) for row, prompt in prompts.items()}


def test_unwritten_pages_and_left_over_rows_may_hold_anything(bench: Bench, reference: Reference) -> None:
    rows = bench.engine._rows
    bench.pool.fill_(float("nan"))
    rows.token_ids.random_(0, VOCAB)
    rows.page_table.random_(0, 40)
    prompts = {row: [row + 1] * length for row, length in enumerate((1, 16, 33))}
    answers = Answers()
    for row, prompt in prompts.items():
        bench.book.admit(row, prompt)
    for _ in range(6):
        for row in prompts:
            bench.book.work(row)
        bench.book.plan_and(bench.engine, answers)
    assert answers.failed == {}
    assert answers.token_ids == {row: reference.greedy(prompt, 6) for row, prompt in prompts.items()}


def test_copied_and_shared_pages_serve_a_second_sequence(bench: Bench, reference: Reference) -> None:
    """Copy-on-write: the full page of a prompt is shared, its partial page is copied, both sequences then write."""
    prompt = list(range(20))
    bench.book.admit(0, prompt)
    bench.book.work(0)
    first = bench.book.plan()
    answers = Answers()
    answers.read(first, bench.engine.compute(first))

    full, partial = bench.book.held[0].pages
    copied = bench.book.take_page()
    bench.book.copy(partial, copied)
    bench.book.admit(1, prompt, pages=[full, copied])
    for _ in range(8):
        for row in (0, 1):
            bench.book.work(row)
        bench.book.plan_and(bench.engine, answers)
    expected = reference.greedy(prompt, 9)
    assert answers.token_ids == {0: expected, 1: expected[:8]}
    # The second sequence computed its last prompt token only: the rest was shared or copied.
    assert bench.book.held[1].computed == len(prompt) + 7


@pytest.mark.parametrize("slice_bytes", [4 * VOCAB * 3, 64 << 20])
def test_prompt_logprobs_in_chunks_and_slices(
    bench: Bench, reference: Reference, monkeypatch: pytest.MonkeyPatch, slice_bytes: int
) -> None:
    monkeypatch.setattr(runner, "PROMPT_LOGITS_BYTES", slice_bytes)
    engine = type(bench.engine)(bench.parts, bench.engine.shape)
    rng = np.random.default_rng()
    prompts = {row: _prompt(rng, length) for row, length in ((0, 50), (2, 17), (5, 1))}
    answers = Answers()
    for row, prompt in prompts.items():
        sampling = greedy(prompt_top_tokens=3 if row == 0 else 0)
        bench.book.admit(row, prompt, sampling=sampling, prompt_logprobs=True)
    bench.book.admit(6, [3] * 30)  # beside them one that did not ask
    while any(bench.book.held[row].computed < len(prompt) for row, prompt in prompts.items()):
        for row in (*prompts, 6):
            bench.book.work(row, int(rng.integers(1, 15)))
        bench.book.plan_and(engine, answers)
    assert sorted(answers.prompt_logprobs) == [0, 2]
    for row, values in answers.prompt_logprobs.items():
        torch.testing.assert_close(torch.tensor(values), reference.logprobs(prompts[row]), atol=1e-4, rtol=0)
    # Who asked has the three likeliest in each place, and who did not has none.
    assert [len(top) for top in answers.prompt_top[0]] == [3] * 49
    assert not any(answers.prompt_top.get(2, []))
    told = torch.tensor([[logprob for _, logprob in top] for top in answers.prompt_top[0]])
    torch.testing.assert_close(told, reference.top_logprobs(prompts[0], 3), atol=1e-4, rtol=0)
    for (token, logprob), *_ in answers.prompt_top[0]:
        assert logprob < 0
        assert token < VOCAB


def test_generated_logprobs_are_the_models(bench: Bench, reference: Reference) -> None:
    prompt = [9, 8, 7, 6]
    bench.book.admit(0, prompt)
    answers = Answers()
    for _ in range(10):
        bench.book.work(0)
        bench.book.plan_and(bench.engine, answers)
    expected = reference.logprobs(prompt + answers.token_ids[0])[len(prompt) - 1 :]
    torch.testing.assert_close(torch.tensor(answers.logprobs[0]), expected, atol=1e-4, rtol=0)


def test_a_seed_gives_its_ids_alone_among_neighbours_and_after_resumption(bench: Bench) -> None:
    sampled = greedy(do_sample=True, seed=2**63 + 11, temperature=1.5, top_p=0.95)

    def run(neighbours: int, resume_after: int | None) -> list[int]:
        answers, ids = Answers(), []
        for row in range(neighbours):
            bench.book.admit(row, [row + 2] * 5, sampling=greedy(do_sample=True, seed=row, temperature=0.9))
        bench.book.admit(7, [4, 5, 6], sampling=sampled)
        for step in range(16):
            if step == resume_after:
                ids = answers.token_ids[7]
                bench.book.release(7)
                bench.book.plan_and(bench.engine, answers)
                bench.book.admit(7, [4, 5, 6, *ids], sampling=sampled, num_prompt_tokens=3)
            for row in bench.book.held:
                bench.book.work(row)
            bench.book.plan_and(bench.engine, answers)
        for row in list(bench.book.held):
            bench.book.release(row)
        bench.book.plan_and(bench.engine, answers)
        return answers.token_ids[7]

    alone = run(neighbours=0, resume_after=None)
    assert len(set(alone)) > 4
    assert run(neighbours=6, resume_after=None) == alone
    assert run(neighbours=3, resume_after=7) == alone


def test_top_tokens_come_only_to_whom_asked(bench: Bench) -> None:
    bench.book.admit(0, [1, 2, 3])
    bench.book.admit(1, [1, 2, 3], sampling=greedy(top_n_tokens=4))
    for row in (0, 1):
        bench.book.work(row)
    result = bench.engine.compute(bench.book.plan())
    counts = read_u32(result.top_tokens.counts)
    assert counts[0] == 0
    assert counts[1] >= 4
    logprobs = read_f32(result.top_tokens.logprobs)
    assert len(logprobs) == sum(counts)
    assert logprobs == sorted(logprobs, reverse=True)
    assert read_u32(result.top_tokens.token_ids)[0] == read_u32(result.token_ids)[1]
    assert logprobs[0] == pytest.approx(read_f32(result.logprobs)[1])


def test_steady_state_uses_the_same_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[tuple[int, int, int]] = []
    forward = bench.engine._runner.forward

    def spy(inputs):
        places.append((inputs.token_ids.data_ptr(), inputs.positions.data_ptr(), inputs.batch.page_table.data_ptr()))
        return forward(inputs)

    monkeypatch.setattr(bench.engine._runner, "forward", spy)
    for row in range(8):
        bench.book.admit(row, [row + 1])
    for _ in range(40):
        for row in range(8):
            bench.book.work(row)
        assert not bench.engine.compute(bench.book.plan()).failed
    assert len(places) == 40
    assert len(set(places)) == 1
