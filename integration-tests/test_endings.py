"""Ends that nobody planned: a launcher that is killed leaves no process, no socket and no port behind."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import streams
from conftest import Launch

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
# They have to be gone within 2 s; a busy machine may take longer to show it.
SECONDS = 60.0


def is_running(pid: int) -> bool:
    """Whether any thread of the process is left: the first may be a zombie while others still hold its sockets."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        return state != "Z" or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def test_a_launcher_that_is_killed_under_load_leaves_nothing(
    checkpoint: Callable[..., Path], launch: Launch, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    server = launch(checkpoint(), *LIMITS, "--num-shard", "2", TMPDIR=str(temporary))
    children = [*server.children("millrace_worker"), *server.children("millrace-router")]
    assert len(children) == 3
    crowd = streams.Crowd(server.url, streams.mixed_requests(8, new_tokens=200))
    crowd.wait_started()
    server.process.kill()
    began = time.monotonic()
    everyone = [server.process.pid, *children]
    while any(map(is_running, everyone)):
        assert time.monotonic() < began + SECONDS, [pid for pid in everyone if is_running(pid)]
        time.sleep(0.01)
    print(f"all are gone after {time.monotonic() - began:.2f} s")
    with socket.create_server(("127.0.0.1", int(server.url.rpartition(":")[2]))):
        pass  # nobody holds the port
    crowd.give_up()
    # What could not be removed any more is removed by the next launcher on this machine.
    left = list(temporary.iterdir())
    launch(checkpoint(), *LIMITS, TMPDIR=str(temporary))
    assert not any(path.exists() for path in left)
