"""Rows with grammars through the engine: what they say is in the grammar, and nobody else notices."""

from __future__ import annotations

import re

import numpy as np
import pytest
from millrace_worker.grammar import Vocabulary

from .noisy import END, Generated, Request, generate, noisy_engine, sampling, seeded

NUMBER = "start: /-?[1-9][0-9]{0,12}(\\.[0-9]{1,6})?/"
LETTERS = "start: /[a-f]{3,40}/"
OBJECT = (
    '{"grammars": [{"json_schema": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, '
    '"sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4}}, '
    '"required": ["name", "sizes"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}}}]}'
)


def _text(vocabulary: Vocabulary, ids: list[int]) -> str:
    return vocabulary.tokenizer.decode_str([token for token in ids if token != END])


def _one(vocabulary: Vocabulary, request: Request, **options: object) -> Generated:
    return generate(noisy_engine(vocabulary), {0: request}, **options)  # pyright: ignore[reportArgumentType]


def test_without_its_grammar_the_model_says_something_else(vocabulary: Vocabulary) -> None:
    free = _one(vocabulary, Request(seeded(), most=20))
    assert not re.fullmatch("[a-f]{3,40}", _text(vocabulary, free.ids[0]))


@pytest.mark.parametrize("make", [sampling, seeded], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    ("grammar", "expected"), [(NUMBER, "-?[1-9][0-9]{0,12}(\\.[0-9]{1,6})?"), (LETTERS, "[a-f]{3,40}")]
)
def test_a_text_matches_and_ends(vocabulary: Vocabulary, make, grammar: str, expected: str) -> None:
    generated = _one(vocabulary, Request(make(grammar)))
    assert generated.failed == {}
    assert generated.ids[0][-1] == END
    assert re.fullmatch(expected, _text(vocabulary, generated.ids[0]))
    assert np.isfinite(generated.logprobs[0]).all()
