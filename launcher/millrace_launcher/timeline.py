"""How long each part of the start took, for one log line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

# A worker's record with this field means that the rank has just finished the phase.
_PHASE_ENDS = {"load_ms": "load", "prepare_ms": "prepare"}


class Timeline:
    """Phases follow each other: resolve, fetch, load, prepare, ready. A phase lasts from the end of the one before it
    to its own last mark, so that the slowest rank counts. Times are in seconds of `clock`."""

    PHASES = ("resolve", "fetch", "load", "prepare", "ready")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._marks: dict[str, float] = {}
        self._lock = threading.Lock()

    def mark(self, phase: str) -> None:
        """The phase is over, as far as is known."""
        with self._lock:
            self._marks[phase] = self._clock()

    def notice(self, fields: Mapping[str, Any]) -> None:
        """Reads the fields of a worker's record."""
        for name, phase in _PHASE_ENDS.items():
            if name in fields:
                self.mark(phase)

    def durations(self) -> dict[str, float]:
        """Seconds per phase that was marked, and in all ("total"), rounded to milliseconds."""
        with self._lock:
            marks = dict(self._marks)
        durations: dict[str, float] = {}
        before = self._start
        for phase in self.PHASES:
            if phase in marks:
                durations[phase] = round(max(marks[phase] - before, 0.0), 3)
                before = max(marks[phase], before)
        return durations | {"total": round(before - self._start, 3)}
