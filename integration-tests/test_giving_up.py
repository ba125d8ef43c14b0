"""Workers that cannot be brought back: the launcher gives up, and everybody who waits for it is told."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import streams
from conftest import Launch, Server
from millrace_launcher.failures import MAX_FAILURES_IN_A_ROW

LIMITS = ("--dtype", "float32", "--max-total-tokens", "2048", "--max-input-tokens", "300", "--max-batch-size", "2")
SECONDS = 60.0


def is_well(server: Server) -> bool:
    try:
        return server.health() == 200
    except httpx.TransportError:
        return False


def ask(server: Server) -> httpx.Response:
    body = {"inputs": "who waits", "parameters": {"max_new_tokens": 5}}
    return httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS)


def test_when_no_worker_can_start_again_everybody_is_told_and_the_launcher_ends(
    checkpoint: Callable[..., Path], launch: Launch, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(checkpoint(), tmp_path / "model"))
    server = launch(model, *LIMITS, "--max-restart-wait-seconds", "0")
    running = streams.Crowd(server.url, [(f"{index}: on and on", {"max_new_tokens": 1800}) for index in range(2)])
    running.wait_started()
    (worker,) = server.children("millrace_worker")
    os.kill(worker, signal.SIGSTOP)  # nobody comes to an end meanwhile
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, server) for _ in range(2)]
        while server.metric("tgi_queue_size") < len(waiting):
            assert not any(each.done() for each in waiting), "both rows are taken"
        # The next worker finds other weights than the first one, which has its own open still.
        (model / "model.safetensors").rename(model / "weights that nobody finds")
        (model / "model.safetensors").write_bytes(b"these are no weights")
        os.kill(worker, signal.SIGKILL)
        transcripts = running.transcripts()
        answers = [each.result() for each in waiting]
    assert not is_well(server)
    assert [(t.error, t.finish_reason) for t in transcripts] == [(transcripts[0].error, None)] * 2
    assert transcripts[0].error
    assert all(t.indices == list(range(1, len(t.ids) + 1)) for t in transcripts)
    assert [(answer.status_code, answer.json()["error_type"]) for answer in answers] == [
        (500, "incomplete_generation")
    ] * 2
    assert server.process.wait(SECONDS) == 1
    last = server.output().splitlines()[-1]
    assert last.startswith('Error: ShardFailed("rank 0 ended: exit status 1: cannot load ')
    assert f"{MAX_FAILURES_IN_A_ROW} failures in a row, no further restart" in last
    assert server.output().count("rank 0 ended") >= MAX_FAILURES_IN_A_ROW
