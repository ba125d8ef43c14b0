"""A launcher with fake children, started as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAKES = Path(__file__).parent
PATIENCE = 60.0  # generous: a test that waits this long has failed


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Launcher:
    """A launcher with fake children, its log, and the notes that its children left."""

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        self.notes_folder = folder / "notes"
        self.notes_folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model"
        model.mkdir(exist_ok=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (model / name).write_text("{}")
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        model_flags = [] if "--model-id" in flags else ["--model-id", str(model)]
        port_flags = [] if "--port" in flags else ["--port", "0"]
        base = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")}
        self.process = subprocess.Popen(
            [sys.executable, str(FAKES / "serve.py"), *model_flags, *port_flags, *flags],
            env={**base, "FAKE_DIR": str(self.notes_folder), "TMPDIR": str(self.temporary), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        pipes = ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        self._collectors = [threading.Thread(target=self._collect, args=each, daemon=True) for each in pipes]
        for thread in self._collectors:
            thread.start()

    @staticmethod
    def _collect(pipe: Any, kept: list[str]) -> None:
        for line in pipe:
            kept.append(line.rstrip("\n"))

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def notes(self, kind: str) -> list[dict[str, Any]]:
        paths = sorted(self.notes_folder.glob(f"{kind}-*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text()) for path in paths]

    def workers(self, rank: int) -> list[dict[str, Any]]:
        return self.notes(f"worker-{rank}")

    def router(self) -> dict[str, Any]:
        return until(lambda: self.notes("router"), "the router")[0]

    def told(self) -> list[dict[str, Any]]:
        """What its first router was told."""
        prefix = "router was told: "
        return [json.loads(line.removeprefix(prefix)) for line in list(self.lines) if line.startswith(prefix)]

    def pids(self) -> list[int]:
        notes = [*self.notes("worker"), *self.notes("router")]
        return [note["pid"] for note in notes] + [note["child"] for note in notes if note.get("child")]

    def ready(self) -> Launcher:
        until(lambda: "Ready: " in self.log or self.process.poll() is not None, "readiness")
        assert self.process.poll() is None, self.errors
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        until(lambda: self.process.poll() is not None, "the launcher's end")
        for thread in self._collectors:  # its last words are in the pipes still
            thread.join(PATIENCE)
        return self.process.wait()

    def leaves_nothing(self) -> bool:
        """No process of its own, no file in its temporary folder."""
        gone = until(lambda: not any(map(is_running, self.pids())), "the end of all children")
        return gone and not list(self.temporary.iterdir())
