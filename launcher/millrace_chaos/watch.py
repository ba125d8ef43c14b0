"""What the server says of itself while it is hurt: when each health route turned false and true again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from millrace_chaos.connection import BrokenError, Place, get

ROUTES = ("/health", "/livez")
_EVERY_SECONDS = 0.05
# An answer that takes longer is none. One alone says more of the machine that both run on than of the server.
_ANSWER_SECONDS = 2.0
_UNANSWERED_IN_A_ROW = 2


@dataclass(frozen=True)
class Change:
    """A route turned true or false at `at`, of the monotonic clock; `why` is what was answered."""

    route: str
    at: float
    well: bool
    why: str


class Watch:
    """Asks the health routes all the time."""

    def __init__(self, place: Place) -> None:
        self.changes: list[Change] = []
        self.slowest_answer = 0.0
        self._place = place
        self._state: dict[str, bool] = {}
        self._looked: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Watches the routes that exist."""
        offered = [route for route in ROUTES if await self._exists(route)]
        self._tasks = [asyncio.create_task(self._ask(route)) for route in offered]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def is_well(self) -> bool:
        """By the last answers."""
        return bool(self._state) and all(self._state.values())

    def is_well_since(self, at: float) -> bool:
        """By answers to questions that were asked later."""
        return self.is_well() and min(self._looked.values()) >= at

    def turned(self, route: str, well: bool, since: float) -> float | None:
        """Seconds from `since` until the route turned so for the first time."""
        times = (change.at - since for change in self.changes if (change.route, change.well) == (route, well))
        return min((seconds for seconds in times if seconds >= 0), default=None)

    def ever_false(self, since: float) -> bool:
        return any(not change.well and change.at >= since for change in self.changes)

    async def well(self, seconds: float) -> bool:
        """Waits until every route is true; false when the time is up."""
        deadline = time.monotonic() + seconds
        while not self.is_well():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_EVERY_SECONDS)
        return True

    async def _exists(self, route: str) -> bool:
        try:
            status, _ = await get(self._place, route)
        except BrokenError:
            return True
        return status != 404

    async def _ask(self, route: str) -> None:
        unanswered = 0
        while True:
            began = time.monotonic()
            try:
                status, _ = await get(self._place, route, _ANSWER_SECONDS)
                well, why, unanswered = status == 200, f"status {status}", 0
                self.slowest_answer = max(self.slowest_answer, time.monotonic() - began)
            except BrokenError as broken:
                is_late = time.monotonic() - began >= _ANSWER_SECONDS
                unanswered = unanswered + 1 if is_late else _UNANSWERED_IN_A_ROW
                well, why = unanswered < _UNANSWERED_IN_A_ROW and self._state.get(route, True), str(broken)
            if self._state.get(route, True) != well:
                self.changes.append(Change(route, time.monotonic(), well, why))
            self._state[route], self._looked[route] = well, began
            await asyncio.sleep(_EVERY_SECONDS)


def slowest(times: Iterable[float | None]) -> float | None:
    """The largest of the times that are known."""
    return max((seconds for seconds in times if seconds is not None), default=None)
