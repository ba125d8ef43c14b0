"""Faults of what surrounds a server: logs that cannot be written, clocks that jump, ports that are taken, pods that are
replaced."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import Launch, Server, free_port

from . import shows

CROWD = shows.Crowd(streams=12, distinct=8, new_tokens=60)


def launcher(model: Path, *arguments: str) -> list[str]:
    program = str(Path(sys.executable).parent / "millrace-launcher")
    return [program, "--model-id", str(model), "--hostname", "127.0.0.1", *shows.LIMITS, *arguments]


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, "the launcher ended"
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("not healthy in time")


def test_logs_that_cannot_be_written_stop_nothing(checkpoint: Callable[..., Path]) -> None:
    """Nobody reads standard output, into which far more is logged than a pipe holds; there is no space for errors."""
    reading, writing = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    port = free_port()
    command = launcher(checkpoint(), "--port", str(port))
    process = subprocess.Popen(command, stdout=writing, stderr=full, start_new_session=True)
    os.close(writing)
    os.close(full)
    try:
        wait_ready(f"http://127.0.0.1:{port}", process)
        body = {"inputs": "go", "parameters": {"max_new_tokens": 1}}
        # More than both pipes hold, from the router to the launcher and on.
        with httpx.Client(timeout=60, headers={"x-request-id": "i" * 128}) as client:
            for _ in range(600):
                assert client.post(f"http://127.0.0.1:{port}/generate", json=body).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        os.close(reading)
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds by how many seconds the wall clock of `server` is wrong."""
    path = tmp_path_factory.mktemp("clock") / "clock"
    path.write_bytes(struct.pack("q", 0))
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch, clock: Path) -> Server:
    """With a wall clock of its own."""
    library = shows.library(Path(__file__).parent / "clock_jump.c", clock.parent)
    return launch_module(checkpoint(), *shows.LIMITS, LD_PRELOAD=str(library), CLOCK_JUMP_FILE=str(clock))


def test_a_clock_that_jumps_is_nobodys_fault(server: Server, clock: Path) -> None:
    shown = shows.clock_jumps(server, clock, CROWD)
    assert shown["jumps"] == 4
    # The jumps took place: the log's times are of other years.
    years = {line[:4] for line in server.output().splitlines() if line[:2] == "20"}
    assert len(years) > 1, years


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(checkpoint: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            launcher(checkpoint(), "--port", str(port)), capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: it is in use" in ended.stderr
    assert "Starting" not in ended.stdout


def test_a_rolling_update_loses_nothing_though_its_endpoint_is_removed_late(
    server: Server, checkpoint: Callable[..., Path], launch: Launch
) -> None:
    old = launch(checkpoint(), *shows.LIMITS, "--lame-duck-seconds", "8")
    before = server.output().count("Success")
    shown = shows.rolling_update(old, server, CROWD, late_seconds=2.0)
    assert shown["exit status"] == 0
    assert server.output().count("Success") > before, "nobody came to the new server"
