"""The real launcher, started as a user starts it, and HTTP."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import httpx
import openai
import pytest
from huggingface_hub import InferenceClient

# Modules that take a minute or so, each about as long as ten others.
LONGEST = ("test_transformers_backend.py", "test_chaos.py", "test_poison.py", "test_parity.py")
START_SECONDS = 300.0  # generous: how long it takes on a busy machine is not what is tested


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Parallel processes (`pytest -n 2 --dist loadgroup`) take whole modules, whose tests share servers: the longest
    first, so that no process is left with one of them while the others have nothing to do."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    if getattr(session.config.option, "loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist has told this pytest of no groups"


@dataclass
class Server:
    """One running launcher."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def generate(self, inputs: str, **parameters: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/generate", json={"inputs": inputs, "parameters": parameters}, timeout=300)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def health(self) -> int:
        return httpx.get(f"{self.url}/health", timeout=10).status_code

    def metric(self, name: str) -> float:
        """The value of a metric without labels, 0 before its first event."""
        for line in httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return 0.0

    def children(self, program: str) -> list[int]:
        """Process ids of the launcher's children whose command line holds `program`."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,  # no children: ps ends with 1
        )
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if program in line]

    def kill_worker(self, rank: int = 0) -> list[int]:
        """Process ids of the workers there were; `wait_replaced` takes them."""
        workers = self.children("millrace_worker")
        os.kill(workers[rank], signal.SIGKILL)
        return workers

    def wait_replaced(self, workers: list[int], seconds: float = START_SECONDS) -> None:
        """Until as many others are there, and healthy: right after a kill, nobody has seen it."""
        deadline = time.monotonic() + seconds
        while len(now := self.children("millrace_worker")) != len(workers) or set(now) & set(workers):
            assert time.monotonic() < deadline, f"workers {workers} not replaced after {seconds} s:\n{self.output()}"
            time.sleep(0.05)
        self.wait_healthy(seconds)

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_healthy(self, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the launcher ended with {self.process.returncode}:\n{self.output()}")
            try:
                if self.health() == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not healthy after {seconds} s:\n{self.output()}")


def free_port() -> int:
    """A port that nobody holds, and that the kernel gives to no connection of another test before it is listened on."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0])
    for _ in range(100):
        # 0, any of those that are given, where they leave too few others.
        port = random.SystemRandom().randrange(10_000, first_given) if first_given > 12_000 else 0
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise AssertionError("no port is free")


@contextmanager
def running(model: str | Path, log: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """A launcher that is ready, and is stopped at the end."""
    with starting(model, log, *arguments, **environment) as server:
        server.wait_healthy()
        yield server


@contextmanager
def starting(model: str | Path, log: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """A launcher that has just been started, and is stopped at the end."""
    port = free_port()
    launcher = str(Path(sys.executable).parent / "millrace-launcher")
    command = [launcher, "--model-id", str(model), "--hostname", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


Launch = Callable[..., Server]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts servers that live for one test."""
    with ExitStack() as stack:
        yield lambda model, *args, **env: stack.enter_context(
            running(model, tmp_path / f"launcher-{free_port()}.log", *args, **env)
        )


@pytest.fixture(scope="module")
def launch_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Starts servers that live for one module."""
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as stack:
        yield lambda model, *args, **env: stack.enter_context(
            running(model, logs / f"launcher-{free_port()}.log", *args, **env)
        )


@pytest.fixture(scope="module")
def hub(server: Server) -> InferenceClient:
    """Of the module's own `server`."""
    return InferenceClient(server.url)


@pytest.fixture(scope="module")
def ai(server: Server) -> openai.OpenAI:
    """Of the module's own `server`."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes (once per session) a tiny random checkpoint of an architecture."""
    made: dict[str, Path] = {}

    def get(architecture: str = "llama") -> Path:
        if architecture not in made:
            made[architecture] = checkpoints.make(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return get
