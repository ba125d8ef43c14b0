"""Where one row stands in its grammar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace_worker.grammar.matchers import GrammarError, reason

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    from llguidance import LLMatcher
    from numpy.typing import NDArray

    from millrace_worker.grammar.matchers import Matchers


@dataclass
class RowGrammar:
    """`ends`: the mask of the row's end tokens, `end_ids` they; impossible at positions below `opens_at` if anything
    else is possible. `output`: its tokens so far, of which the matcher has been told `num_read`. `position`: where the
    next token will stand. `ended`: nothing but an end token may follow."""

    grammar: str
    compiled: Future[LLMatcher]
    ends: NDArray[np.uint32]
    end_ids: frozenset[int]
    opens_at: int
    position: int
    output: list[int]
    num_read: int = 0
    matcher: LLMatcher | None = None
    ended: bool = False

    def append(self, token: int) -> None:
        """The row has sampled it."""
        self.position += 1
        self.output.append(token)

    def read(self) -> LLMatcher:
        """The matcher, told of all output. Raises GrammarError."""
        matcher = self.matcher or self._start(self.compiled.result().deep_copy())
        for token in self.output[self.num_read :]:
            if self.ended:
                break
            if token in self.end_ids and matcher.is_accepting():
                self.ended = True
            elif not matcher.consume_token(token):
                raise GrammarError(_unread(matcher))
            self.ended = self.ended or matcher.is_stopped()
        self.num_read = len(self.output)
        return matcher

    def reread(self, matchers: Matchers) -> LLMatcher:
        """A matcher of its own that has read the same: one that others filled may have failed through no fault of this
        row. Raises GrammarError."""
        self.num_read, self.ended = 0, False
        self._start(matchers.own(self.grammar))
        return self.read()

    def _start(self, matcher: LLMatcher) -> LLMatcher:
        if matcher.is_error():
            raise GrammarError(f"the grammar cannot be used: {reason(matcher)}")
        self.matcher = matcher
        return matcher


def _unread(matcher: LLMatcher) -> str:
    """Why it has not read a token; which one it was, the library says, and clients are not told."""
    said = reason(matcher)
    if "satisfy the grammar" in said:
        return "the text so far is not in the grammar"
    return f"the grammar cannot go on: {said}"
