"""One child process: its own process group, a lifeline on stdin, and its output line by line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from millrace_launcher.complaint import Complaint
from millrace_launcher.resolve import Command

_CHUNK_BYTES = 1 << 16
# A line without end is cut here, so that a child cannot fill the launcher's memory.
_MAX_LINE_BYTES = 1 << 20
_KEPT_STDERR_LINES = 400
_PUMP_SECONDS = 5.0


@dataclass(frozen=True)
class Ending:
    """How a child ended: `status` is its exit status, or minus the signal that killed it."""

    status: int

    def __str__(self) -> str:
        if self.status >= 0:
            return f"exit status {self.status}"
        number = -self.status
        named = number in set(signal.Signals)
        return f"killed by {signal.Signals(number).name if named else f'signal {number}'}"


class Child:
    """A started child. The write end of its stdin stays open as long as the launcher lives: its end of file is how the
    child learns that the launcher is gone, even when that was by SIGKILL.

    `on_line(stream, line)` gets every line of "stdout" and "stderr", the last one also without its newline;
    `on_exit(ending)` comes after the last line. Both are called from threads of this child. What the child has started
    itself ends with it.
    """

    def __init__(
        self,
        command: Command,
        on_line: Callable[[str, str], None],
        on_exit: Callable[[Ending], None],
        passed: Sequence[int] = (),
    ) -> None:
        """`passed`: descriptors that the child gets, under their numbers. Raises OSError when it cannot be started."""
        self.last_stderr_lines: deque[str] = deque(maxlen=_KEPT_STDERR_LINES)
        self._complaint = Complaint()
        self._on_line = on_line
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._reaped = False
        self._process = subprocess.Popen(
            command.argv,
            env=dict(command.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            pass_fds=passed,
        )
        streams = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        self._pumps = [
            threading.Thread(target=self._pump, args=(name, pipe), daemon=True) for name, pipe in streams.items()
        ]
        try:
            for thread in (*self._pumps, threading.Thread(target=self._watch, daemon=True)):
                thread.start()
        except RuntimeError as error:  # no more threads are to be had
            self.kill()
            self._process.wait()
            raise OSError(errno.EAGAIN, str(error)) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ending_in_words(self, ending: Ending) -> str:
        """How it ended, and why if it has said so. What was killed did not end for a reason of its own."""
        reason = None if ending.status == -signal.SIGKILL else self._complaint.reason
        return f"{ending}: {reason}" if reason else str(ending)

    def tell(self, news: Mapping[str, Any]) -> None:
        """A line on its stdin. Waits while the child has not read what was said before; who is gone is told nothing."""
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(news).encode() + b"\n")
                self._process.stdin.flush()

    def terminate(self) -> None:
        """SIGTERM to the child itself."""
        self._signal(os.kill, signal.SIGTERM)

    def ask_stacks(self) -> None:
        """SIGUSR1: a worker writes the stacks of its threads to stderr."""
        self._signal(os.kill, signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL to the child and everything in its process group."""
        self._signal(os.killpg, signal.SIGKILL)

    def _signal(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        """Never reaches a stranger: the pid is the child's own until it is reaped, and that needs the lock."""
        with self._lock:
            if not self._reaped:
                with contextlib.suppress(ProcessLookupError):
                    send(self.pid, number)

    def _watch(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        # The child is a zombie now, so its group's number is still taken: what it left behind can be ended safely,
        # which also closes the pipes that the pumps read.
        self.kill()
        for pump in self._pumps:
            pump.join(_PUMP_SECONDS)
        with self._lock:
            self._reaped = True
            status = self._process.wait()
        self._on_exit(Ending(status))
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what it was told and never read is still in the pipe's buffer
                self._process.stdin.close()

    def _pump(self, name: str, pipe: IO[bytes] | None) -> None:
        assert pipe is not None, "both streams are pipes"
        rest = b""
        with pipe:
            while chunk := os.read(pipe.fileno(), _CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._deliver(name, line)
                if len(rest) >= _MAX_LINE_BYTES:
                    self._deliver(name, rest)
                    rest = b""
        if rest:
            self._deliver(name, rest)

    def _deliver(self, name: str, line: bytes) -> None:
        text = line.decode("utf-8", errors="replace").rstrip("\r")
        if name == "stderr":
            self.last_stderr_lines.append(text)
        self._complaint.notice(name, text)
        self._on_line(name, text)
