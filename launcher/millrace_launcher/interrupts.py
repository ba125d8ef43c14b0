"""Signals that ask the launcher to stop, wherever it is: before children run it leaves at once, later it drains."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Until `hand_over`, a signal runs `leave` and ends the process with status 0: nothing has to be drained, and a
    download goes on at the next start. Afterwards each signal calls the given function. SIGHUP stays ignored when it
    was, so that `nohup` keeps its meaning."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self._stop: Callable[[], None] | None = None
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def hand_over(self, stop: Callable[[], None]) -> None:
        """`stop` runs in the main thread between two of its instructions: it may only put into a SimpleQueue."""
        self._stop = stop

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if self._stop is not None:
            self._stop()
            return
        self._leave()
        os._exit(0)
