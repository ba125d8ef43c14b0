"""Rows with grammars through the engine: what they say is in the grammar, and nobody else notices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from millrace_worker.grammar import Vocabulary
from millrace_worker.proto import worker_pb2

from .noisy import END, Generated, NoisyModel, Request, generate, noisy_engine, sampling, seeded

NUMBER = "-?[1-9][0-9]{0,12}(\\.[0-9]{1,6})?"
LETTERS = "[a-f]{3,40}"
SUM = 'start: term ("+" term){1,4}\nterm: NUMBER | "(" NUMBER "-" NUMBER ")"\nNUMBER: /[0-9]{1,3}/'
CHOICE = 'start: "north" | "north-west" | "south" | "süd" | "<s>"'
OBJECT = json.dumps({
    "grammars": [{
        "json_schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
            },
            "required": ["name", "sizes"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        }
    }]
})  # fmt: skip
FREE = sampling()
Make = Callable[..., worker_pb2.Sampling]


def regex(pattern: str) -> str:
    return f"start: /{pattern}/"


def text(vocabulary: Vocabulary, ids: list[int]) -> str:
    return vocabulary.tokenizer.decode_str([token for token in ids if token != END])


def one(
    vocabulary: Vocabulary | None,
    request: Request,
) -> Generated:
    return generate(noisy_engine(vocabulary), {0: request})


def test_without_its_grammar_the_model_says_something_else(vocabulary: Vocabulary) -> None:
    free = one(vocabulary, Request(seeded(), most=20))
    assert not re.fullmatch(LETTERS, text(vocabulary, free.ids[0]))


@pytest.mark.parametrize("make", [sampling, seeded], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (regex(NUMBER), NUMBER),
        (regex(LETTERS), LETTERS),
        (SUM, r"(\d{1,3}|\(\d{1,3}-\d{1,3}\))(\+(\d{1,3}|\(\d{1,3}-\d{1,3}\))){1,4}"),
        (CHOICE, "north(-west)?|south|süd|<s>"),
        (OBJECT, r'\{"name":".*","sizes":\[(\d{1,2}(,\d{1,2})*)?\]\}'),
    ],
    ids=["number", "letters", "sum", "choice", "object"],
)
def test_a_text_matches_and_ends(vocabulary: Vocabulary, make: Make, grammar: str, expected: str) -> None:
    for first in (3, 40, 500):
        generated = one(vocabulary, Request(make(grammar), prompt=[first, 9]))
        assert generated.failed == {}
        assert generated.ids[0][-1] == END
        assert re.fullmatch(expected, text(vocabulary, generated.ids[0]))
        assert np.isfinite(generated.logprobs[0]).all()


EVERYTHING = {
    "top_k": 40, "top_p": 0.9, "typical_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.3, "frequency_penalty": 0.4,
    "presence_penalty": 0.5, "count_penalty": 0.2, "watermark": True, "top_n_tokens": 5,
}  # fmt: skip


@pytest.mark.parametrize("feature", [*EVERYTHING, "all"])
def test_no_feature_of_sampling_leaves_the_grammar(vocabulary: Vocabulary, feature: str) -> None:
    """Nor does one become a number that is none, where a single token is left."""
    over = EVERYTHING if feature == "all" else {feature: EVERYTHING[feature]}
    generated = one(vocabulary, Request(seeded(OBJECT, **over)))
    assert generated.failed == {}
    assert set(json.loads(text(vocabulary, generated.ids[0]))) == {"name", "sizes"}
    assert np.isfinite(generated.logprobs[0]).all()


def test_logprobs_and_top_tokens_are_of_what_is_allowed(vocabulary: Vocabulary) -> None:
    """A text that is the only one: every token of one letter has a rival or none, and their shares add up to one."""
    engine = noisy_engine(vocabulary)
    plan = worker_pb2.StepPlan(step=1)
    three = sampling("start: /[xyz]/", top_n_tokens=5)
    plan.admitted.add(sequence=1, row=0, token_ids=bytes(4), num_prompt_tokens=1, sampling=three)
    plan.work.rows, plan.work.starts, plan.work.counts, plan.work.samples = bytes(4), bytes(4), b"\1\0\0\0", b"\1"
    top = engine.compute(plan).top_tokens
    ids = np.frombuffer(top.token_ids, dtype="<u4").tolist()
    assert {vocabulary.tokenizer.decode_str([token]) for token in ids} == {"x", "y", "z"}
    assert np.exp(np.frombuffer(top.logprobs, dtype="<f4")).sum() == pytest.approx(1, abs=1e-5)


def test_the_mask_wins_over_a_bias(vocabulary: Vocabulary) -> None:
    letter = vocabulary.tokenizer.tokenize_str("q")[0]
    biased: dict[str, Any] = {"bias_token_ids": np.uint32(letter).tobytes(), "bias_values": np.float32(100).tobytes()}
    assert one(vocabulary, Request(sampling(**biased), most=1)).ids[0] == [letter]
    generated = one(vocabulary, Request(sampling(regex(LETTERS), **biased)))
    assert re.fullmatch(LETTERS, text(vocabulary, generated.ids[0]))


def test_a_text_is_as_long_as_asked_where_the_grammar_lets_it(vocabulary: Vocabulary) -> None:
    at_will = one(vocabulary, Request(seeded(regex("[a-z]{1,300}"), min_new_tokens=60), most=200))
    assert len(at_will.ids[0]) > 60
    assert at_will.ids[0][-1] == END
    complete = one(vocabulary, Request(seeded(regex("[a-z]{3}"), min_new_tokens=60)))
    assert len(text(vocabulary, complete.ids[0])) == 3
    assert complete.ids[0][-1] == END


def test_any_end_token_of_a_row_ends_its_text(vocabulary: Vocabulary) -> None:
    """The second is no special token at all: only rows that name it may take it, and only at the end."""
    model = NoisyModel()
    model.scores[:, 77] = 50.0
    engine = noisy_engine(vocabulary, model)
    both = generate(engine, {0: Request(sampling(regex("[a-f]{3}"), ends=[END, 77]))}, ends=[END, 77])
    assert both.ids[0][-1] == 77
    assert re.fullmatch("[a-f]{3}", text(vocabulary, both.ids[0][:-1]))
    alone = generate(engine, {0: Request(sampling(regex("[a-f]{3}")))})
    assert 77 not in alone.ids[0]


def test_whoever_goes_on_after_the_end_says_it_again(vocabulary: Vocabulary) -> None:
    """As when a client wants ends to be ignored."""
    generated = generate(noisy_engine(vocabulary), {0: Request(sampling(regex("[a-f]{3}")), most=20)}, ends=[])
    assert len(generated.ids[0]) == 20
    first = generated.ids[0].index(END)
    assert set(generated.ids[0][first:]) == {END}


def test_without_an_end_token_a_complete_text_is_followed_by_what_nobody_sees(vocabulary: Vocabulary) -> None:
    generated = generate(noisy_engine(vocabulary), {0: Request(sampling(regex("[a-f]{3}"), ends=[]), most=12)}, ends=[])
    assert generated.failed == {}
    shown = [token for token in generated.ids[0] if token not in vocabulary.hidden]
    assert re.fullmatch("[a-f]{3}", vocabulary.tokenizer.decode_str(shown))
    assert shown == generated.ids[0][: len(shown)]
    assert len(shown) < 12


def test_padded_and_special_tokens_are_never_free_text(vocabulary: Vocabulary) -> None:
    model = NoisyModel()
    model.scores[:, 4096:] += 30
    model.scores[:, :5] += 20
    engine = noisy_engine(vocabulary, model)
    generated = generate(engine, {0: Request(sampling("start: /(.|\\n)*/"), most=30)})
    assert generated.ids[0] == [END]
    least = generate(engine, {0: Request(sampling("start: /(.|\\n)*/", min_new_tokens=20), most=30)})
    assert len(least.ids[0]) == 21
    assert min(least.ids[0][:-1]) >= 5
    assert max(least.ids[0]) < 4096


def test_a_vocabulary_wider_than_the_scores(vocabulary: Vocabulary) -> None:
    """Tokens that the model has no scores for cannot be chosen."""
    generated = generate(
        noisy_engine(vocabulary, NoisyModel(1001)), {0: Request(seeded(regex("[a-z ]{20,60}")), most=90)}
    )
    assert generated.failed == {}
    assert re.fullmatch("[a-z ]{20,60}", text(vocabulary, generated.ids[0]))


def test_special_tokens_that_a_grammar_names(vocabulary: Vocabulary) -> None:
    generated = one(vocabulary, Request(sampling('start: <[3]> "hi" <|user|>')))
    assert (generated.ids[0][0], generated.ids[0][-2:]) == (3, [2, END])
    assert vocabulary.tokenizer.decode_str(generated.ids[0][1:-2]) == "hi"
