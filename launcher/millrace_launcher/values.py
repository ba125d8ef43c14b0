"""What a flag's text may be: one `ValueKind` per type, as strict as the original's parser.

Rust's integer and float parsers take no underscores, spaces or hexadecimal, so neither do these. Every parser raises
`ValueError` with a sentence that says what is expected; the caller adds the flag's name and the text that was given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WHOLE_NUMBER = re.compile(r"\+?[0-9]+")
_DECIMAL_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class ValueKind:
    """How a flag's value is written.

    A kind without `takes_value` is a switch: nothing follows it on the command line, and its environment variable is
    `true` or `false`. `blank_is_unset`: an empty environment variable means "not given", as deployments write it.
    A kind that `repeats` parses to a tuple; several occurrences on the command line are joined.
    """

    placeholder: str
    parse: Callable[[str], Any]
    choices: tuple[str, ...] = ()
    takes_value: bool = True
    blank_is_unset: bool = False
    repeats: bool = False


def _text(text: str) -> str:
    if not text:
        raise ValueError("a value that is not empty is expected")
    return text


def _whole_number(bits: int) -> Callable[[str], int]:
    largest = 2**bits - 1

    def parse(text: str) -> int:
        if not _WHOLE_NUMBER.fullmatch(text) or int(text) > largest:
            raise ValueError(f"a whole number from 0 to {largest} is expected")
        return int(text)

    return parse


def _number(text: str) -> float:
    if not _DECIMAL_NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError("a finite decimal number is expected")
    return float(text)


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("'true' or 'false' is expected")
    return text == "true"


def _true_or_false_or_digit(text: str) -> bool:
    """PREFIX_CACHING has been written as 1 and True in the wild."""
    return _true_or_false({"1": "true", "0": "false"}.get(text, text.lower()))


def _comma_list(parse_item: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(parse_item(item) for item in text.split(","))

    return parse


def one_of(*choices: str) -> ValueKind:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is expected")
        return text

    return ValueKind("NAME", parse, choices=choices)


SWITCH = ValueKind("", _true_or_false, takes_value=False)
TRUE_OR_FALSE = ValueKind("BOOL", _true_or_false, choices=("true", "false"))
LENIENT_TRUE_OR_FALSE = ValueKind("BOOL", _true_or_false_or_digit, choices=("true", "false"))
TEXT = ValueKind("TEXT", _text, blank_is_unset=True)
PATH = ValueKind("PATH", _text, blank_is_unset=True)
# An empty secret is a mistake in the deployment: serving without a key instead would open the server.
SECRET = ValueKind("SECRET", _text)
TEXTS = ValueKind("TEXT", _comma_list(_text), blank_is_unset=True, repeats=True)
PORT = ValueKind("PORT", _whole_number(16))
COUNT_32 = ValueKind("N", _whole_number(32))
COUNT = ValueKind("N", _whole_number(64))
COUNTS = ValueKind("N", _comma_list(_whole_number(64)), repeats=True)
BYTES = ValueKind("BYTES", _whole_number(64))
SECONDS = ValueKind("SECONDS", _whole_number(64))
NUMBER = ValueKind("NUMBER", _number)
