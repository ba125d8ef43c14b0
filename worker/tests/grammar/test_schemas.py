"""What a model says that would rather say anything else, against a validator of JSON schemas that we did not write."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from jsonschema.validators import validator_for
from millrace_worker.grammar import Vocabulary

from .noisy import END, Request, generate, noisy_engine, seeded
from .schemas import Schema, corpus

# What may stand between two parts: bounded, as the router has it.
WRITING = {"whitespace_pattern": r"\x20{1,2}|\x20{0,2}\r?\n[\x20\x09]{0,4}", "json_allowed_escapes": 'nrbtf\\"'}
ROWS = 64
TOKENS = 1200


def grammar(schema: Schema) -> str:
    return json.dumps({"grammars": [{"json_schema": schema | {"x-guidance": WRITING}}]})


def problem(schema: Schema, text: str) -> str:
    """What is wrong with the text; nothing if nothing is. A validator's floats would refuse multiples of 0.1."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    try:
        value: Any = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        return f"no JSON: {error}"
    validator = validator_for(schema)
    return "; ".join(
        error.message for error in validator(exact, format_checker=validator.FORMAT_CHECKER).iter_errors(value)
    )


def test_the_corpus_is_large_and_of_schemas() -> None:
    named = corpus()
    assert len(named) >= 300
    assert len(dict(named)) == len(named)
    for _, schema in named:
        validator_for(schema).check_schema(schema)


def test_a_validator_finds_what_is_wrong() -> None:
    assert problem({"type": "integer", "maximum": 3}, "4")
    assert problem({"type": "string", "format": "ipv4"}, '"1.2.3"')
    assert problem({}, "{")
    assert not problem({"type": "number", "multipleOf": 0.1}, "0.3")


@pytest.mark.parametrize("part", range(4))
def test_every_text_is_valid_and_ends(vocabulary: Vocabulary, part: int) -> None:
    engine = noisy_engine(vocabulary, max_rows=ROWS)
    mine = corpus()[part::4]
    wrong = dict[str, str]()
    for at in range(0, len(mine), ROWS):
        batch = mine[at : at + ROWS]
        requests = {
            row: Request(seeded(grammar(schema), seed=at + row, temperature=1.0 + row % 3), most=TOKENS)
            for row, (_, schema) in enumerate(batch)
        }
        generated = generate(engine, requests)
        for row, (name, schema) in enumerate(batch):
            ids = generated.ids[row]
            text = vocabulary.tokenizer.decode_str([token for token in ids if token != END])
            if row in generated.failed:
                wrong[name] = generated.failed[row]
            elif ids[-1] != END:
                wrong[name] = f"no end: {text[-80:]}"
            elif problem(schema, text):
                wrong[name] = f"{problem(schema, text)}: {text}"
    assert wrong == {}
