"""The constant load: many clients, each with one request after the other, every answer checked."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from millrace_chaos.answer import Answer, Outcome, ViolationError, reader_of
from millrace_chaos.asks import Ask
from millrace_chaos.connection import BrokenError, Connection, Place

_KEPT_PROBLEMS = 20
_LONGEST_RETRY_SECONDS = 5.0
_REFUSALS = (429, 503)


@dataclass
class Tally:
    """What became of the requests of one load. Times are in seconds."""

    sent: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    events: int = 0
    longest_stall: float = 0.0  # between two pieces of one stream
    longest_wait: float = 0.0  # from the request to the first piece of its answer
    problems: list[str] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        return self.outcomes[outcome]

    @property
    def failed(self) -> int:
        """How many requests ended as none may."""
        return sum(self.outcomes[bad] for bad in (Outcome.LOST, Outcome.DUPLICATED, Outcome.WRONG))

    def note(self, problem: str) -> None:
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)


@dataclass(frozen=True)
class Manner:
    """How clients behave: how many, how long they wait for a next piece, how many of their connections they keep."""

    streams: int = 64
    patience: float = 120.0
    keep_alive: float = 0.5


class _RefusedError(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class Exchange:
    """One request and its answer, with the times between."""

    def __init__(self, ask: Ask, reference: Answer | None, tally: Tally, patience: float) -> None:
        self._ask = ask
        self._reader = reader_of(ask.api, reference)
        self._tally = tally
        self._patience = patience

    async def run(self, place: Place, connection: Connection) -> Answer:
        """Raises `ViolationError`, `BrokenError`, and `_RefusedError` for a refusal in good form."""
        loop = asyncio.get_running_loop()
        last, is_first = time.monotonic(), True
        try:
            async with asyncio.timeout(self._patience) as limit:
                await connection.send(place.post(self._ask.api.value, self._ask.body()))
                head = await connection.read_head()
                if head.status != 200:
                    _raise_refusal(head.status, head.headers, await connection.body())
                async for piece in connection.pieces():
                    events = self._reader.feed(piece)
                    if not events:
                        continue  # a comment that keeps the connection alive, or a part of something larger
                    now = time.monotonic()
                    if is_first:
                        self._tally.longest_wait = max(self._tally.longest_wait, now - last)
                    else:
                        self._tally.longest_stall = max(self._tally.longest_stall, now - last)
                    last, is_first = now, False
                    limit.reschedule(loop.time() + self._patience)
                    self._tally.events += events
        except TimeoutError:
            raise ViolationError(Outcome.LOST, f"nothing came for {self._patience:g} s") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ViolationError(Outcome.WRONG, f"an answer of another form: {error!r}") from None
        return self._reader.end()


def _raise_refusal(status: int, headers: Mapping[str, str], body: bytes) -> None:
    told = body[:200].decode(errors="replace")
    if status not in _REFUSALS:
        raise ViolationError(Outcome.LOST, f"status {status}: {told}")
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        raise ViolationError(Outcome.LOST, f"status {status} without `Retry-After`: {told}") from None
    raise _RefusedError(seconds)


class Load:
    """`streams` clients that ask until `finish`. While `cutting`, broken connections and missing servers are put down
    to the fault that is known to cause them."""

    def __init__(
        self, place: Place, asks: Sequence[Ask], references: Mapping[int, Answer], manner: Manner, seed: int = 0
    ) -> None:
        self.tally = Tally()
        self.cutting = False
        self.manner = manner
        self.place = place  # where new connections lead; those that are kept stay where they are
        self._asks = asks
        self._references = references
        self._seed = seed
        self._over = asyncio.Event()
        self._turns = [0] * manner.streams
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self.manner.streams)]

    async def finish(self) -> Tally:
        """No new requests; what runs comes to its end."""
        self._over.set()
        await asyncio.gather(*self._tasks)
        return self.tally

    async def moved(self, share: float = 1.0) -> None:
        """Until events have come anew, and ends of requests for `share` of the clients; or the patience is over."""
        events, turns = self.tally.events, list(self._turns)
        wanted = max(1, round(share * len(turns)))
        deadline = time.monotonic() + self.manner.patience
        while time.monotonic() < deadline and not self._over.is_set():
            ended = sum(now > before for now, before in zip(self._turns, turns, strict=True))
            if ended >= wanted and self.tally.events > events:
                return
            await asyncio.sleep(0.02)

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        connection: Connection | None = None
        while not self._over.is_set():
            connection = await self._turn(chance.choice(self._asks), connection)
            self._turns[number] += 1
            if connection is not None and chance.random() >= self.manner.keep_alive:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    async def _turn(self, ask: Ask, connection: Connection | None) -> Connection | None:
        """One request. Returns the connection if it can take another."""
        self.tally.sent += 1
        was_cutting, place = self.cutting, self.place
        pause = 0.0
        try:
            connection = connection or await Connection.open(place)
            exchange = Exchange(ask, self._references.get(ask.number), self.tally, self.manner.patience)
            await exchange.run(place, connection)
            self.tally.outcomes[Outcome.COMPLETED] += 1
        except _RefusedError as refused:
            self.tally.outcomes[Outcome.REFUSED] += 1
            pause = min(refused.seconds, _LONGEST_RETRY_SECONDS)
        except BrokenError as broken:
            is_cut = was_cutting or self.cutting
            self._failed(ask, Outcome.CUT if is_cut else Outcome.LOST, str(broken))
            pause = 0.1
        except ViolationError as violation:
            self._failed(ask, violation.outcome, str(violation))
        if pause:
            await self._rest(pause)
        if connection is not None and not connection.reusable:
            connection.close()
            return None
        return connection

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            pass

    def _failed(self, ask: Ask, outcome: Outcome, why: str) -> None:
        self.tally.outcomes[outcome] += 1
        if outcome is not Outcome.CUT:
            self.tally.note(f"{outcome.value}: request {ask.number} on {ask.api.value}: {why}")


async def take_references(place: Place, asks: Sequence[Ask], patience: float, together: int = 4) -> dict[int, Answer]:
    """Every distinct request once, with few beside it. Raises `BrokenError` or `ViolationError` when one fails."""
    found: dict[int, Answer] = {}
    waiting = list(asks)

    async def take() -> None:
        while waiting:
            ask = waiting.pop(0)
            connection = await Connection.open(place)
            try:
                found[ask.number] = await Exchange(ask, None, Tally(), patience).run(place, connection)
            except _RefusedError:
                await asyncio.sleep(0.5)
                waiting.append(ask)
            finally:
                connection.close()

    await asyncio.gather(*(take() for _ in range(together)))
    return found
