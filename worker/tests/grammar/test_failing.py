"""A grammar that fails fails its own sequence: the others get the ids that they would have had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from millrace_worker import runner
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine
from millrace_worker.grammar import GrammarRows, Vocabulary, matchers, row
from millrace_worker.sampling.workspace import Workspace

from worker.tests.engine.plans import Answers, PlanBook

from .noisy import END, VOCAB, NoisyModel, Request, generate, noisy_engine, parts_of, sampling, seeded
from .test_generation import LETTERS, OBJECT, one, regex

OTHERS = {
    0: Request(seeded(OBJECT), prompt=[5, 6]),
    2: Request(seeded(seed=8), prompt=[9], most=40),
    3: Request(sampling(regex(LETTERS)), prompt=[1]),
}


def _beside(vocabulary: Vocabulary, failing: Request, engine: Engine | None = None) -> str:
    """Why the request fails; it is seen to that the others do not notice."""
    undisturbed = generate(noisy_engine(vocabulary), OTHERS)
    generated = generate(engine or noisy_engine(vocabulary), OTHERS | {1: failing})
    assert {row: generated.ids[row] for row in OTHERS} == undisturbed.ids
    assert {row: generated.logprobs[row] for row in OTHERS} == undisturbed.logprobs
    assert set(generated.failed) == {1}
    return generated.failed[1]


@pytest.mark.parametrize("grammar", ["start: nosuch", "{", '{"grammars": [7]}', '{"grammars": []}', "start: /(/", "\0"])
def test_a_grammar_that_is_none(vocabulary: Vocabulary, grammar: str) -> None:
    assert _beside(vocabulary, Request(sampling(grammar))).startswith("the grammar cannot be used: ")


class Panic(BaseException):
    """As Rust's reach Python."""


def test_a_compiler_that_panics(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    make = matchers.LLMatcher

    def panicking(tokenizer: Any, grammar: str, **options: Any) -> Any:
        if "panic" in grammar:
            raise Panic
        return make(tokenizer, grammar, **options)

    monkeypatch.setattr(matchers, "LLMatcher", panicking)
    assert "its compiler failed (Panic)" in _beside(vocabulary, Request(sampling('start: "panic"')))


def test_a_grammar_that_grows_too_complex(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matchers, "MAX_LEXER_STATES", 120)
    engine = noisy_engine(vocabulary)
    monkeypatch.undo()
    message = _beside(vocabulary, Request(sampling(regex("a{300,400}b|a{300,800}c")), most=900), engine)
    assert "too many states" in message


def test_a_matcher_that_is_full_is_made_anew(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has met on its way fills it, over and over: what it forbids is what it would have forbidden."""
    made = list[object]()
    reread = row.RowGrammar.reread
    monkeypatch.setattr(row.RowGrammar, "reread", lambda *given: (made.append(given), reread(*given))[1])
    words = vocabulary.tokenizer.tokenize_str('"' + "hello there " * 100)
    expected = _allowed(vocabulary, words)
    assert not made
    monkeypatch.setattr(matchers, "MAX_LEXER_STATES", 1800)
    assert _allowed(vocabulary, words) == expected
    assert len(made) >= 3


@pytest.mark.parametrize("rule", ['s s | "a" | /./', 's s | s s s | "a" | /[a-z]/ | ""'])
def test_a_grammar_that_reads_a_text_in_ever_more_ways(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """It fails in an early step, and nobody tries again with a matcher of its own."""
    made = list[object]()
    monkeypatch.setattr(row.RowGrammar, "reread", lambda *given: made.append(given))
    assert "Too many items (limit 10000" in _beside(vocabulary, Request(sampling(f"start: s\ns: {rule}"), most=20))
    assert not made


def test_sequences_that_share_a_lexer_do_not_fill_it_for_one_another(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same grammar again and again, more than one lexer could hold."""
    grammar = 'start: %json {"type": "string", "minLength": 20, "maxLength": 60}'
    monkeypatch.setattr(matchers, "MAX_LEXER_STATES", 1500)
    engine = noisy_engine(vocabulary)
    for seed in range(0, 64, 8):
        requests = {each: Request(seeded(grammar, seed=seed + each), prompt=[seed + each]) for each in range(8)}
        generated = generate(engine, requests)
        assert generated.failed == {}
        assert all(ids[-1] == END for ids in generated.ids.values())


def _allowed(vocabulary: Vocabulary, words: list[int]) -> list[int]:
    """How many tokens may follow the first, the first two … words of a string."""
    rows = GrammarRows(1, vocabulary, VOCAB, Workspace("cpu"))
    rows.admit(0, sampling('start: %json {"type": "string", "minLength": 9, "maxLength": 1210}'), 1, [])
    counts = list[int]()
    for position, token in enumerate(words, 1):
        scores = torch.zeros(1, VOCAB)
        rows.begin(np.zeros(1, dtype=np.int64), np.array([position]))
        rows.apply(scores)
        assert rows.failures == {}
        assert scores[0, token] == 0
        rows.advance(torch.tensor([token]))
        counts.append(int((scores == 0).sum()))
    return counts


def test_a_grammar_that_the_tokens_cannot_say(vocabulary: Vocabulary) -> None:
    """The scores end before the token of the only letter that is allowed."""
    letter = vocabulary.tokenizer.tokenize_str("Z")[0]
    model = NoisyModel(letter)
    generated = generate(
        noisy_engine(vocabulary, model), {0: Request(sampling(regex("Z"))), 1: Request(sampling(), most=9)}
    )
    assert generated.failed == {0: "no token of the model goes on in the grammar"}
    assert len(generated.ids[1]) == 9


def test_a_failed_row_stays_failed_and_the_next_sequence_in_it_does_not(vocabulary: Vocabulary) -> None:
    engine, book, answers = noisy_engine(vocabulary), PlanBook(0, 0), Answers()
    book.admit(0, [1, 2], sequence=7, sampling=sampling("start: nosuch"))
    for _ in range(3):
        book.work(0)
        answers = Answers()
        book.plan_and(engine, answers)
        assert answers.token_ids == {}
        assert set(answers.failed) == {7}
    book.release(0)
    book.admit(0, [1, 2], sequence=8, sampling=sampling(regex(LETTERS)))
    book.work(0)
    book.plan_and(engine, answers)
    assert set(answers.failed) == {7}
    assert len(answers.token_ids[0]) == 1


def test_without_a_vocabulary_a_grammar_is_refused_and_not_ignored(vocabulary: Vocabulary) -> None:
    del vocabulary
    generated = one(None, Request(sampling(regex(LETTERS))))
    assert generated.failed == {0: "this worker cannot hold its model to grammars"}
    assert generated.ids[0] == []


def test_what_was_not_prepared_for_is_refused(vocabulary: Vocabulary) -> None:
    prepared = noisy_engine(vocabulary)
    engine = Engine(parts_of(vocabulary, NoisyModel(), Group()), replace(prepared.shape, grammars=False))
    generated = generate(engine, {0: Request(sampling(regex(LETTERS)))})
    assert "grammars were not prepared for" in generated.failed[0]


def test_a_step_that_fails_while_masks_are_made(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of the failed step must not be taken for those of the next one."""
    engine, book = noisy_engine(vocabulary), PlanBook(0, 0)
    book.admit(0, [1, 2], sampling=sampling(OBJECT))
    book.work(0)
    answers = Answers()
    with monkeypatch.context() as patch:
        patch.setattr(NoisyModel, "hidden", _raise)
        book.plan_and(engine, answers)
    assert set(answers.failed) == {100}
    book.release(0)
    book.plan_and(engine, answers)
    assert generate(engine, OTHERS).ids == generate(noisy_engine(vocabulary), OTHERS).ids


def _raise(*_: Any) -> None:
    raise RuntimeError("a kernel")


class Following(Group):
    """As a rank beside rank 0 sees it: ids come from there."""

    def broadcast(self, x: Any) -> Any:
        return x.fill_(5)


def test_other_ranks_have_no_matchers_and_stay_in_step(vocabulary: Vocabulary) -> None:
    """A grammar that fails on rank 0 must not change what is computed there: a rank would wait for the other."""
    engine = noisy_engine(vocabulary, group=Following(rank=1, size=2))
    book = PlanBook(0, 0)
    book.admit(0, [1, 2], sampling=sampling("start: nosuch"))
    book.admit(1, [1, 2], sampling=sampling(OBJECT))
    for _ in range(3):
        book.work(0)
        book.work(1)
        result = engine.compute(book.plan())
        assert not result.failed
        assert result.token_ids == b""
    assert engine._rows.token_ids[:2, 2:5].tolist() == [[5] * 3] * 2


def test_a_failed_grammar_computes_on_where_rank_0_leads(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list[int]()
    forward = runner.Runner.forward
    monkeypatch.setattr(
        runner.Runner, "forward", lambda self, inputs: (rows.append(len(inputs.batch.rows)), forward(self, inputs))[1]
    )
    engine, book = noisy_engine(vocabulary), PlanBook(0, 0)
    book.admit(0, [1, 2], sampling=sampling("start: nosuch"))
    book.admit(1, [1, 2], sampling=sampling(OBJECT))
    for _ in range(3):
        book.work(0)
        book.work(1)
        engine.compute(book.plan())
    assert rows == [2, 2, 2]


def test_the_message_of_a_failure_holds_no_text(vocabulary: Vocabulary) -> None:
    secret = vocabulary.tokenizer.tokenize_str("secret")
    generated = one(vocabulary, Request(sampling(regex("[0-9]{4}")), output=secret))
    assert "secret" not in generated.failed[0]
