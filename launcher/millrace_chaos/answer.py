"""Answers, checked as they come: one reader for each form, all with the same end, an `Answer` or a `ViolationError`.

What is checked without knowing the right answer: indices are consecutive, the pieces of text add up, there is exactly
one terminal event and nothing behind it. With a reference: every id (or, under /v1, the text and the number of tokens)
is that of the undisturbed run, each at the moment when it comes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from millrace_chaos.asks import Api

_HALF = "\ufffd"


class Outcome(Enum):
    """How a request ended."""

    COMPLETED = "completed"
    REFUSED = "refused"  # 429 or 503 with `Retry-After`, before anything else
    CUT = "cut"  # by a fault that is known to cut what runs
    LOST = "lost"  # no answer, an error, or a stream without its end
    DUPLICATED = "duplicated"  # something came twice
    WRONG = "wrong"  # another answer than that of the undisturbed run


class ViolationError(Exception):
    """What came is not what had to come."""

    def __init__(self, outcome: Outcome, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


@dataclass(frozen=True)
class Answer:
    """A whole answer. `ids` is empty under /v1, which tells none; `tokens` is their number in any case."""

    ids: tuple[int, ...]
    text: str
    tokens: int
    finish: str


class Reader(Protocol):
    """Takes the body of an answer in pieces."""

    def feed(self, piece: bytes) -> int:
        """How many events were in it. Raises `ViolationError`."""
        ...

    def end(self) -> Answer:
        """After the last piece. Raises `ViolationError`."""
        ...


def reader_of(api: Api, reference: Answer | None) -> Reader:
    if api is Api.GENERATE:
        return _Whole(reference)
    return _Tokens(reference) if api is Api.GENERATE_STREAM else _Deltas(reference)


class _Events:
    """Cuts a stream of server-sent events; comments keep connections alive and say nothing."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, piece: bytes) -> Iterator[bytes]:
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        for event in events:
            if event.startswith(b"data:"):
                yield event[5:].strip()
            elif event.strip() and not event.lstrip().startswith(b":"):
                raise ViolationError(Outcome.WRONG, f"an event without data: {event[:80]!r}")

    def end(self) -> None:
        if self._rest.strip():
            raise ViolationError(Outcome.LOST, "the stream ended inside an event")


class _Tokens:
    """/generate_stream: an event for each token, the last one with the whole text."""

    def __init__(self, reference: Answer | None) -> None:
        self._events = _Events()
        self._reference = reference
        self._ids: list[int] = []
        self._text: list[str] = []
        self._is_plain = True
        self._answer: Answer | None = None

    def feed(self, piece: bytes) -> int:
        count = 0
        for data in self._events.of(piece):
            self._event(_parsed(data))
            count += 1
        return count

    def _event(self, event: dict[str, Any]) -> None:
        if self._answer is not None:
            raise ViolationError(Outcome.DUPLICATED, f"an event behind the last one: {json.dumps(event)[:120]}")
        token, index, expected = event["token"], event["index"], len(self._ids) + 1
        if index != expected:
            outcome = Outcome.DUPLICATED if index < expected else Outcome.WRONG
            raise ViolationError(outcome, f"index {index} where {expected} had to come")
        self._ids.append(token["id"])
        self._text.append(token["text"])
        self._is_plain = self._is_plain and not token["special"]
        _compare_ids(self._reference, len(self._ids), token["id"])
        if event.get("generated_text") is not None:
            finish = (event.get("details") or {}).get("finish_reason", "")
            self._answer = Answer(tuple(self._ids), event["generated_text"], len(self._ids), finish)
            # Special tokens are no part of the whole text, and half a character before one shows in their own; half a
            # character at the end shows in the whole text only.
            if self._is_plain and "".join(self._text).rstrip(_HALF) != event["generated_text"].rstrip(_HALF):
                raise ViolationError(Outcome.WRONG, "the pieces of text do not add up to the whole")

    def end(self) -> Answer:
        self._events.end()
        return _compared(self._answer, self._reference, len(self._ids))


class _Deltas:
    """The streams under /v1: pieces of text, one reason to finish, the usage, `[DONE]`."""

    def __init__(self, reference: Answer | None) -> None:
        self._events = _Events()
        self._reference = reference
        self._text = ""
        self._finish: str | None = None
        self._tokens: int | None = None
        self._done = False

    def feed(self, piece: bytes) -> int:
        count = 0
        for data in self._events.of(piece):
            if self._done:
                raise ViolationError(Outcome.DUPLICATED, f"an event behind [DONE]: {data[:120]!r}")
            if data == b"[DONE]":
                self._done = True
            else:
                self._event(_parsed(data))
            count += 1
        return count

    def _event(self, event: dict[str, Any]) -> None:
        for choice in event.get("choices") or ():
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            if text:
                if self._finish is not None:
                    raise ViolationError(Outcome.DUPLICATED, "text behind the reason to finish")
                self._text += text
            if choice.get("finish_reason") is not None:
                if self._finish is not None:
                    raise ViolationError(Outcome.DUPLICATED, "two reasons to finish")
                self._finish = choice["finish_reason"]
        if event.get("usage"):
            self._tokens = event["usage"]["completion_tokens"]
        if self._reference is not None and not self._reference.text.startswith(self._text):
            raise ViolationError(Outcome.WRONG, f"another text than undisturbed, at character {len(self._text)}")

    def end(self) -> Answer:
        self._events.end()
        whole = self._done and self._finish is not None and self._tokens is not None
        answer = Answer((), self._text, self._tokens or 0, self._finish or "") if whole else None
        return _compared(answer, self._reference, len(self._text))


class _Whole:
    """/generate: one JSON object."""

    def __init__(self, reference: Answer | None) -> None:
        self._reference = reference
        self._body = bytearray()

    def feed(self, piece: bytes) -> int:
        self._body += piece
        return 1

    def end(self) -> Answer:
        told = _parsed(bytes(self._body))
        ids = tuple(token["id"] for token in told["details"]["tokens"])
        if len(ids) != told["details"]["generated_tokens"]:
            raise ViolationError(Outcome.WRONG, f"{told['details']['generated_tokens']} tokens told, {len(ids)} given")
        for place, token in enumerate(ids, start=1):
            _compare_ids(self._reference, place, token)
        answer = Answer(ids, told["generated_text"], len(ids), told["details"]["finish_reason"])
        return _compared(answer, self._reference, len(ids))


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise ViolationError(Outcome.LOST, f"no JSON: {data[:80]!r}") from None
    if "error" in event:
        raise ViolationError(Outcome.LOST, f"an error: {json.dumps(event)[:200]}")
    return event


def _compare_ids(reference: Answer | None, place: int, token: int) -> None:
    if reference is None:
        return
    if place > len(reference.ids):
        raise ViolationError(Outcome.WRONG, f"token {place} of an answer that has {len(reference.ids)} undisturbed")
    if reference.ids[place - 1] != token:
        raise ViolationError(Outcome.WRONG, f"token {place} is {token}, undisturbed it is {reference.ids[place - 1]}")


def _compared(answer: Answer | None, reference: Answer | None, received: int) -> Answer:
    if answer is None:
        raise ViolationError(Outcome.LOST, f"the stream ended without its last event, after {received}")
    if reference is not None and answer != reference:
        told = f"{answer.tokens} tokens ({answer.finish}) where undisturbed {reference.tokens} ({reference.finish})"
        raise ViolationError(Outcome.WRONG, f"another answer than undisturbed: {told}")
    return answer
