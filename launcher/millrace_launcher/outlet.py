"""Where the launcher's lines go: a descriptor that may be full, stuck or gone, and must never hold up the server.

The children's output passes through the launcher, so a launcher that waits for the reader of its own output would make
them wait, too: a log collector that hangs would hang every stream.
"""

from __future__ import annotations

import io
import os
import select
from typing import TextIO

# A pipe that polls as writable takes so many bytes without waiting (POSIX: PIPE_BUF).
_PIECE_BYTES = 512 if not hasattr(select, "PIPE_BUF") else select.PIPE_BUF
_PATIENCE_MILLISECONDS = 500


class Outlet:
    """Writes lines to `stream`'s descriptor, past its buffer; to the stream itself if it has none.

    A reader that takes nothing is waited for once, for half a second; from then on lines are dropped until it takes
    some again, and then their number is told. What cannot be written (no reader, no space) is dropped, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._dropped = 0
        self._is_stuck = False
        self._is_inside_a_line = False

    def line(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text + "\n")
            self._stream.flush()
            return
        dropped = f"lines dropped, because nobody took them: {self._dropped}\n" if self._dropped else ""
        begin = "\n" if self._is_inside_a_line else ""
        if self._write(self._descriptor, (begin + dropped + text + "\n").encode("utf-8", "backslashreplace")):
            self._dropped = 0
        else:
            self._dropped += 1

    def _write(self, descriptor: int, data: bytes) -> bool:
        """Whether all of it was taken."""
        ready = select.poll()
        ready.register(descriptor, select.POLLOUT)
        for start in range(0, len(data), _PIECE_BYTES):
            if not ready.poll(0 if self._is_stuck else _PATIENCE_MILLISECONDS):
                self._is_stuck = True
                return False
            self._is_stuck = False
            try:
                os.write(descriptor, data[start : start + _PIECE_BYTES])
            except OSError:
                return False
            self._is_inside_a_line = start + _PIECE_BYTES < len(data)
        return True


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, io.UnsupportedOperation, ValueError):
        return None
