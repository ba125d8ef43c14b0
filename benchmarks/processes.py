"""Processes of a measurement: their output goes to a file, signals reach all they started, nothing outlives its use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from millrace_worker.vectors import avoid_slow_vectors

# To end, and that a terminal is closed.
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
LOGS = Path(__file__).resolve().parent.parent / "target" / "benchmarks" / "logs"


class DidNotStartError(RuntimeError):
    """A process ended, or never said that it is ready."""


@dataclass(frozen=True)
class Program:
    """A command, what its environment has beyond ours, and whether it is asked through its stdin."""

    name: str
    command: list[str]
    environment: dict[str, str]
    asked_by_pipe: bool = False


def log_of(name: str) -> Path:
    return LOGS / f"{name}.log"


def last_words(name: str) -> str:
    """The end of what a program wrote."""
    text = log_of(name).read_text(encoding="utf-8", errors="replace") if log_of(name).exists() else ""
    return " / ".join(line.strip() for line in text.splitlines()[-3:] if line.strip())[-400:]


def begin_as_a_worker(module: str) -> None:
    """Begins this program again where numpy, which is here already, is to leave some vector instructions alone."""
    if avoid_slow_vectors(os.environ):
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


@contextmanager
def started(program: Program) -> Iterator[subprocess.Popen[str]]:
    """The running program; at the end it and all its descendants are gone, also when SIGTERM ends us, or a
    terminal that is closed. Of the main thread only, which is the one that handles signals."""
    LOGS.mkdir(parents=True, exist_ok=True)
    pipe = subprocess.PIPE if program.asked_by_pipe else subprocess.DEVNULL
    heard = [number for number in ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` is respected
    before = {number: signal.signal(number, leave) for number in heard}
    with log_of(program.name).open("wb") as log:
        process = subprocess.Popen(
            program.command,
            stdin=pipe,
            stdout=pipe if program.asked_by_pipe else log,
            stderr=log,
            text=True,
            env=os.environ | program.environment,
        )
    try:
        yield process
    finally:
        end(process)
        for number, handler in before.items():
            if signal.getsignal(number) is leave:
                signal.signal(number, handler)


def leave(number: int, _: object) -> None:
    for each in ENDINGS:  # a closed terminal says so more than once
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def end(process: subprocess.Popen[str]) -> None:
    members = family(process.pid)
    send(members, signal.SIGCONT)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    send(members[1:], signal.SIGKILL)
    if process.poll() is None:
        process.kill()
        process.wait(10)


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [pid, *(d for child in listed.stdout.split() for d in family(int(child)))]


def resident_bytes(pid: int) -> int:
    """VmRSS of a process and all its descendants; a page that several of them map counts once for each."""
    total = 0
    for member in family(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{member}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
    return total


def processor_seconds(stat: Path) -> float:
    """What a process or a thread has computed, by its file `stat` under /proc."""
    user, system = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_healthy(port: int, process: subprocess.Popen[str], seconds: float = 180.0) -> None:
    """Until /health answers 200."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DidNotStartError(f"the server ended with {process.returncode}")
        if answers_healthy(port):
            return
        time.sleep(0.1)
    raise DidNotStartError(f"not healthy after {seconds:.0f} s")


def answers_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except (URLError, TimeoutError, ConnectionError):
        return False
