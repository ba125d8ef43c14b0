"""Every way in which a server can fail its clients is found, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from millrace_chaos.answer import Outcome
from millrace_chaos.connection import Place
from millrace_chaos.load import Manner
from millrace_chaos.phase import Row, run_phase
from millrace_chaos.report import as_json, table
from millrace_chaos.run import CannotRunError, Findings, Settings, prepare, run

from .lying_server import Events, LyingServer, event

# The first so many requests are those whose answers are taken for true.
DISTINCT = 8
MANNER = Manner(streams=4, patience=2.0)


def settings(url: str) -> Settings:
    return Settings(Place.of(url), faults=(), manner=MANNER, distinct=DISTINCT, new_tokens=12, exact=True)


def quiet_row(server: LyingServer, hurt: Callable[[LyingServer], None]) -> Row:
    """A phase without a fault, with a server that lies from when `hurt` is called."""

    async def phase() -> Row:
        async with server.running() as url:
            stage = await prepare(settings(url))
            hurt(server)
            return await run_phase(stage, None, 0)

    return asyncio.run(phase())


def on_streams(change: Callable[[Events], Events]) -> Callable[[LyingServer], None]:
    def hurt(server: LyingServer) -> None:
        server.lie = lambda _, events: change(events)

    return hurt


def renumbered(events: Events) -> Events:
    """The second event without any token between it and the fourth."""
    return [*events[:2], *events[3:]]


def cut(events: Events) -> Events:
    return [*events[:3], b""]


def other_ids(events: Events) -> Events:
    """Another id, another text: as when a replayed request goes on wrongly."""
    changed = [piece.replace(b'"id": ', b'"id": 9').replace(b" t5", b" x5") for piece in events[3:]]
    return [*events[:3], *changed]


ERROR = event({"error": "Request failed during generation", "error_type": "generation"})

LIES: dict[str, tuple[Callable[[Events], Events], Outcome]] = {
    "an event twice": (lambda events: [*events[:2], *events[1:]], Outcome.DUPLICATED),
    "the last event twice": (lambda events: [*events, events[-1]], Outcome.DUPLICATED),
    "an event missing": (renumbered, Outcome.WRONG),
    "other tokens": (other_ids, Outcome.WRONG),
    "a stream without its end": (lambda events: events[:-1], Outcome.LOST),
    "a broken connection": (cut, Outcome.LOST),
    "an error instead of the end": (lambda events: [*events[:4], ERROR], Outcome.LOST),
    "half an event": (lambda events: [*events[:4], events[4][:9]], Outcome.LOST),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found_and_named(lie: str) -> None:
    change, outcome = LIES[lie]
    row = quiet_row(LyingServer(), on_streams(change))
    assert row.tally.count(outcome) > 0, row.tally
    assert not row.is_good
    assert row.tally.problems
    assert row.tally.sent == sum(row.tally.outcomes.values()), "every request is counted once"
    assert not as_json([row], [])["good"]
    assert outcome.value in table([row])


def test_an_honest_server_is_found_good() -> None:
    row = quiet_row(LyingServer(), lambda _: None)
    assert row.is_good, row
    assert row.tally.sent == row.tally.count(Outcome.COMPLETED) > 0
    assert as_json([row], [])["good"]


def respond(status: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + headers + b"Content-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (respond(b"429 x", b"Retry-After: 0.01\r\n"), Outcome.REFUSED),
        (respond(b"503 x", b"Retry-After: 0.01\r\n"), Outcome.REFUSED),
        (respond(b"503 x"), Outcome.LOST),
        (respond(b"500 x", b"Retry-After: 0.01\r\n"), Outcome.LOST),
    ],
)
def test_only_refusals_in_good_form_are_refusals(answer: bytes, outcome: Outcome) -> None:
    def hurt(server: LyingServer) -> None:
        server.refusal = answer

    async def phase() -> Row:
        server = LyingServer()
        async with server.running() as url:
            stage = await prepare(settings(url))
            hurt(server)
            # Nothing is ever generated here, which the load waits for: it gives up soon.
            return await run_phase(replace(stage, manner=Manner(streams=2, patience=0.1)), None, 0)

    row = asyncio.run(phase())
    assert row.tally.count(outcome) == row.tally.sent > 0


def test_health_that_turns_false_for_nothing_is_a_problem() -> None:
    def hurt(server: LyingServer) -> None:
        answers: Iterator[int] = iter([200] * 3 + [503] * 3)
        type(server).health = property(lambda _: next(answers, 200))  # type: ignore[assignment]
        del server.__dict__["health"]

    class Moody(LyingServer):
        pass

    row = quiet_row(Moody(), hurt)
    assert any("no reason" in problem for problem in row.problems)
    assert not row.is_good


def test_answers_that_depend_on_their_company_are_not_compared_unless_asked() -> None:
    def findings(exact: bool | None) -> Findings:
        async def whole_run() -> Findings:
            server = LyingServer()
            # True for the first answers only: those that are taken as references, and the one that tries a chat.
            server.lie = lambda number, events: events if number <= DISTINCT + 1 else other_ids(events)
            async with server.running() as url:
                return await run(replace(settings(url), exact=exact), lambda _: None)

        return asyncio.run(whole_run())

    lenient = findings(None)
    assert lenient.is_good
    assert "only their form is checked" in lenient.notes[0]
    assert not findings(True).is_good


def test_a_server_that_is_not_there_or_not_well_cannot_be_tried() -> None:
    async def unwell() -> None:
        server = LyingServer()
        server.health = 503
        async with server.running() as url:
            await prepare(replace(settings(url), manner=Manner(patience=0.1)))

    with pytest.raises(CannotRunError, match="status 503"):
        asyncio.run(unwell())
    absent = replace(settings("http://127.0.0.1:1"), manner=Manner(patience=0.1))
    with pytest.raises(CannotRunError, match="no connection"):
        asyncio.run(prepare(absent))
