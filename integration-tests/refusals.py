"""Starts of the launcher that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from conftest import free_port

SECONDS = 300.0  # a start that is refused takes a few; a machine under load may need far more


@dataclass(frozen=True)
class Refused:
    """How a launcher ended that could not serve."""

    status: int
    sentence: str
    log: str


def start(folder: Path, *flags: str, **environment: str) -> Refused:
    """Starts the launcher as a user does; nothing of it may be alive when it has ended."""
    launcher = str(Path(sys.executable).parent / "millrace-launcher")
    command = [launcher, "--model-id", str(folder), "--hostname", "127.0.0.1", "--port", str(free_port()), *flags]
    mark = f"{folder}-{time.monotonic_ns()}"
    marked_environment = os.environ | environment | {"MILLRACE_TEST_MARK": mark}
    ended = subprocess.run(
        command, env=marked_environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert marked(mark) == []
    *_, last = ended.stderr.strip().splitlines()
    return Refused(ended.returncode, last, ended.stdout + ended.stderr)


def marked(mark: str) -> list[str]:
    """The processes that have inherited the mark."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found
