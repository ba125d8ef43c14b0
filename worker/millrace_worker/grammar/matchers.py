"""Grammars to matchers, beside the thread that computes: compiled once, then copied for every sequence that asks.

What the copies of a matcher meet on their way they keep together, in one lexer, so that sequences with the same grammar
find it warm. That lexer is bounded, and nothing empties it: a sequence that finds it full goes on with one of its own.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits

if TYPE_CHECKING:
    from millrace_worker.grammar.vocabulary import Vocabulary

# Compiled grammars that are kept: a thousand requests with one schema compile it once.
KEPT_GRAMMARS = 64

UNFORCED = '%llguidance {"no_forcing": true}\n'

# States of one lexer, about 250 bytes each: what bounds its memory.
MAX_LEXER_STATES = 50_000

# Items of the parser that one mask may take. Schemas of tests take about 200, one with the 400 optional properties
# that are allowed fewer than 2,000; a grammar that reads a text in ever more ways takes all, in some milliseconds.
# The router tries grammars out with the same bound.
MAX_STEP_ITEMS = 10_000

# How the library says so: a matcher of its own would not help such a sequence.
AMBIGUOUS = "Too many items"

# What grammars take on the host beside the rows' masks, as a rule: a lexer that schemas of some length have warmed, for
# each row and each grammar that is kept. One that is full takes no more than the second figure.
LEXER_BYTES = 1 << 20
FULL_LEXER_BYTES = 12 << 20


def host_bytes(max_rows: int) -> int:
    """What `Prepare` reserves for grammars."""
    return (max_rows + KEPT_GRAMMARS) * LEXER_BYTES


class GrammarError(ValueError):
    """A sequence that cannot go on in its grammar. The message holds nothing of its text."""


class Matchers:
    """One thread at a time calls; `compiled` compiles in threads of its own."""

    def __init__(self, vocabulary: Vocabulary, num_threads: int) -> None:
        self._vocabulary = vocabulary
        self._threads = ThreadPoolExecutor(num_threads, "grammars")
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._limits = LLParserLimits(
            max_lexer_states=MAX_LEXER_STATES,
            step_max_items=MAX_STEP_ITEMS,
            verbose_errors=False,
            precompute_large_lexemes=False,
        )

    def compiled(self, grammar: str) -> Future[LLMatcher]:
        """A matcher at the grammar's beginning: copy it. One in error says what is wrong with the grammar."""
        known = self._compiled.get(grammar)
        if known is None:
            known = self._compiled[grammar] = self._threads.submit(self._compile, grammar)
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return known

    def own(self, grammar: str) -> LLMatcher:
        """One that shares nothing; whoever asks for the grammar next does not get what was shared so far. Compiles."""
        self._compiled.pop(grammar, None)
        return self._compile(grammar)

    def _compile(self, grammar: str) -> LLMatcher:
        try:
            return LLMatcher(self._vocabulary.tokenizer, unforced(grammar), log_level=0, limits=self._limits)
        except BaseException as error:  # a panic of the library is no `Exception`, and would end the process
            raise GrammarError(f"the grammar cannot be used: its compiler failed ({type(error).__name__})") from error


def unforced(grammar: str) -> str:
    """The same language, and the model chooses the tokens of a text that is the only one possible.

    The library would cut such a text by the tokenizer, which takes the name of a special token in it for the token.
    """
    try:
        listed = json.loads(grammar)["grammars"] if grammar.lstrip().startswith("{") else []
        first = listed[0].setdefault("name", "first") if listed else ""
    except (ValueError, LookupError, TypeError, AttributeError):
        return grammar  # the library says what is wrong with it
    if not listed:
        return UNFORCED + grammar
    return json.dumps({"grammars": [{"lark_grammar": f"{UNFORCED}start: @{first}"}, *listed]})


def reason(matcher: LLMatcher) -> str:
    """Of its error, in the library's words."""
    return matcher.get_error().split("\n", 1)[0]
