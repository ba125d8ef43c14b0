"""How often children have failed in a row, and whether going on still makes sense."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FAILURES_IN_A_ROW = 5
# Deaths that are a request's fault, with no step computed between them. A device on which every step kills its process
# makes each request look guilty: it must not take them all.
MAX_PARDONS = 20


def backoff_seconds(failures: int, longest: float) -> float:
    """How long to wait before the restart that follows the n-th failure in a row: 0, 1, 2, 4 …, at most `longest`."""
    return 0.0 if failures <= 1 else min(2.0 ** (failures - 2), longest)


@dataclass(frozen=True)
class Work:
    """What a router has seen since its start: requests that were told that they are to blame, and steps that the
    workers have computed."""

    num_blamed: int = 0
    num_steps: int = 0


class Failures:
    """Failures in a row. Those of which a request was found guilty count no more; those with computed steps between
    them count for the pauses, not for giving up."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self.are_recent = False  # health has not lasted since
        self.fruitless = 0  # without a step between them
        self._unseen = 0
        self._num_pardons = 0
        self._seen: Work | None = None

    @property
    def are_too_many(self) -> bool:
        return self.fruitless >= MAX_FAILURES_IN_A_ROW

    def add(self) -> None:
        self.are_recent = True
        self.in_a_row += 1
        self.fruitless += 1
        self._unseen += 1

    def suspect_device(self) -> None:
        """Whatever is computed fails: until a step succeeds, no request is taken to be guilty."""
        self._num_pardons = MAX_PARDONS

    def router_started(self) -> None:
        """Its counters begin anew."""
        self._seen = Work()

    def see(self, work: Work) -> bool:
        """What the router has seen until now; whether a request was found guilty since the last time."""
        before, self._seen = self._seen or work, work
        unseen, self._unseen = self._unseen, 0
        if work.num_steps > before.num_steps:
            self._num_pardons = 0
            self.fruitless = min(self.fruitless, unseen)
        if work.num_blamed <= before.num_blamed or self._num_pardons >= MAX_PARDONS:
            return False
        self._num_pardons += 1
        self.in_a_row = self.fruitless = 0
        return True
