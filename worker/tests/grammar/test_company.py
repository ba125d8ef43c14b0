"""What a row with a grammar says depends on nobody else, and not on how often it was interrupted."""

from __future__ import annotations

import numpy as np
import pytest
from millrace_worker.grammar import Vocabulary

from worker.tests.engine.plans import Answers, PlanBook

from .noisy import END, Request, generate, noisy_engine, sampling, seeded
from .test_generation import CHOICE, LETTERS, OBJECT, SUM, Make, one, regex


def _requests(make: Make) -> dict[int, Request]:
    """Rows with and without grammars, two of them the same request with other seeds."""
    return {
        0: Request(make(OBJECT), prompt=[5, 6]),
        1: Request(make(), prompt=[9] * 30, most=60),
        2: Request(make(SUM), prompt=[1000, 4, 77]),
        3: Request(seeded(OBJECT, seed=98), prompt=[5, 6]),
        4: Request(make(CHOICE), prompt=[12]),
        5: Request(make(regex(LETTERS), top_k=30, top_n_tokens=3), prompt=[8] * 11),
        6: Request(seeded(seed=3, repetition_penalty=1.2), prompt=[7], most=40),
    }


@pytest.mark.parametrize("make", [sampling, seeded], ids=["greedy", "seeded"])
def test_neighbours_and_chunks_change_nothing(vocabulary: Vocabulary, make: Make) -> None:
    requests = _requests(make)
    alone = {row: one(vocabulary, request).ids[0] for row, request in requests.items()}
    assert len({tuple(ids) for ids in alone.values()}) == len(alone)
    for chunk in (None, 1, 4):
        generated = generate(noisy_engine(vocabulary), requests, chunk=chunk)
        assert generated.failed == {}
        assert generated.ids == alone
    without = {row: request for row, request in requests.items() if not request.sampling.grammar}
    assert generate(noisy_engine(vocabulary), without).ids == {row: alone[row] for row in without}


@pytest.mark.parametrize("make", [sampling, seeded], ids=["greedy", "seeded"])
@pytest.mark.parametrize("grammar", [OBJECT, SUM, CHOICE], ids=["object", "sum", "choice"])
def test_a_sequence_goes_on_from_anywhere(vocabulary: Vocabulary, make: Make, grammar: str) -> None:
    """After a preemption or a restart, at every token; the rest must be what it would have been."""
    request = Request(make(grammar), prompt=[40, 41, 42])
    whole = one(vocabulary, request)
    expected = whole.ids[0]
    engine = noisy_engine(vocabulary)
    for at in range(len(expected)):
        resumed = generate(engine, {at % 8: request.resumed(expected[:at])})
        assert resumed.failed == {}
        assert resumed.ids[at % 8] == expected
    # Also when more was asked for than one text: its end is among the tokens that come back.
    again = generate(engine, {0: request.resumed(expected)}, ends=[])
    assert set(again.ids[0][len(expected) - 1 :]) == {END}


def test_an_output_that_is_not_in_the_grammar_fails(vocabulary: Vocabulary) -> None:
    letters = vocabulary.tokenizer.tokenize_str("abz")
    generated = one(vocabulary, Request(sampling(regex(LETTERS)), output=letters))
    assert generated.failed == {0: "the text so far is not in the grammar"}


def test_rows_come_and_go(vocabulary: Vocabulary) -> None:
    """A row's next sequence knows nothing of the grammar of the last one."""
    rng = np.random.default_rng()
    engine = noisy_engine(vocabulary)
    kinds = {
        "object": Request(seeded(OBJECT), prompt=[3]),
        "sum": Request(sampling(SUM), prompt=[4]),
        "free": Request(seeded(seed=2), prompt=[5], most=25),
    }
    alone = {name: one(vocabulary, request).ids[0] for name, request in kinds.items()}
    book, running, finished = PlanBook(0, 0), dict[int, tuple[str, list[int]]](), 0
    sequence = 0
    while finished < 40:
        answers = Answers()
        for row in range(5):
            if row not in running and rng.random() < 0.5:
                name = str(rng.choice(list(kinds)))
                request = kinds[name]
                known = int(rng.integers(0, len(alone[name])))
                tokens = [*request.prompt, *alone[name][:known]]
                sequence += 1
                fields = {"num_prompt_tokens": len(request.prompt), "sampling": request.sampling}
                book.admit(row, tokens, sequence=sequence, **fields)
                running[row] = (name, alone[name][:known])
        working = [row for row in running if rng.random() < 0.8]
        for row in working:
            book.work(row)
        book.plan_and(engine, answers)
        assert answers.failed == {}
        for row in working:
            name, ids = running[row]
            ids += answers.token_ids[row]
            assert ids == alone[name][: len(ids)]
            if len(ids) == len(alone[name]) or rng.random() < 0.1:
                book.release(row)
                del running[row]
                finished += 1
