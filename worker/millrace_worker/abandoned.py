"""What ends a rank that waits, in a step whose stream is over, for ranks that were never told of that step.

A collective over sockets or between GPUs cannot be given up from outside: it ends with the process. The launcher then
replaces the group; nobody waits for the step, so that costs the weights and nothing else.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How long a rank waits for others in a step whose stream is over: they may not have been told of it.
ABANDONED_SECONDS = 20.0
LOOK_SECONDS = 0.25


class Watch:
    """Calls `die` when an abandoned step has waited so long in one collective; one that computes may take its time.

    `queues`: a collective's call returns before the collective is done, as a GPU's do. The step then counts as waiting
    from the call on: what it has queued computes for a small part of that time.
    """

    def __init__(self, die: Callable[[str], object], *, queues: bool) -> None:
        self._die = die
        self._queues = queues
        self._num_steps = 0
        self._is_abandoned = False
        self._step: int | None = None  # the one that runs
        self._watched: int | None = None
        self._waits_since: float | None = None

    def begin_stream(self) -> None:
        self._is_abandoned = False

    def begin_step(self) -> None:
        self._waits_since = time.monotonic() if self._queues else None
        self._num_steps += 1
        self._step = self._num_steps
        if self._is_abandoned:  # in the moment before
            self.abandon()

    def end_step(self) -> None:
        self._step = None

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Within it this rank waits for the others."""
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            if not self._queues:
                self._waits_since = None

    def abandon(self) -> None:
        """Nobody waits for a step before the next `begin_stream`. Any thread may say so, and more than once."""
        self._is_abandoned = True
        step = self._step
        if step is None or step == self._watched:
            return
        self._watched = step
        arguments = (step, time.monotonic())
        with contextlib.suppress(RuntimeError):  # no more threads are to be had: the collective's own time is left
            threading.Thread(target=self._see_it_end, args=arguments, name="abandoned", daemon=True).start()

    def _see_it_end(self, step: int, abandoned_at: float) -> None:
        while self._step == step:
            since = self._waits_since
            if since is not None and time.monotonic() > max(since, abandoned_at) + ABANDONED_SECONDS:
                self._die("this rank cannot go on: the other ranks take no part in a step whose stream is over")
                return
            time.sleep(LOOK_SECONDS)
