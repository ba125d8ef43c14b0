"""Whether a process that does not answer does anything at all."""

from __future__ import annotations

import time
from pathlib import Path

# A router's own clocks wake it many times a second, whatever its clients do.
_LEAST_SWITCHES_A_SECOND = 1.0
_NAMES = (b"voluntary_ctxt_switches:", b"nonvoluntary_ctxt_switches:")


class Pulse:
    """Context switches of a process's threads between two calls of `beats`: one that is stopped, or whose threads all
    wait for each other, has none."""

    def __init__(self) -> None:
        self._last: tuple[int, float, int] | None = None

    def beats(self, pid: int) -> bool:
        """False at the first call for a process: nothing is known of it then."""
        now, switches = time.monotonic(), _switches(pid)
        last, self._last = self._last, (pid, now, switches)
        if last is None or last[0] != pid:
            return False
        return abs(switches - last[2]) > _LEAST_SWITCHES_A_SECOND * (now - last[1])

    def forget(self) -> None:
        self._last = None


def _switches(pid: int) -> int:
    """Of threads that live now; 0 when the process is gone."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            lines = status.read_bytes().splitlines()
        except OSError:
            continue  # the thread has ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith(_NAMES))
    return total
