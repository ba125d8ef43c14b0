"""Ranks that stand still, caused by SIGSTOP: found by the router, replaced by the launcher, and no request is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import streams
from conftest import Launch, Server

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
REQUESTS = streams.mixed_requests(8, new_tokens=200)
# Health has to be false within this time.
SECONDS_TO_NOTICE = 5.0


def status(server: Server, path: str) -> int:
    return httpx.get(f"{server.url}{path}", timeout=10).status_code


def seconds_until(server: Server, path: str, wanted: int, limit: float) -> float:
    started = time.monotonic()
    while status(server, path) != wanted:
        assert time.monotonic() < started + limit, f"{path} is not {wanted} after {limit} s:\n{server.output()}"
        time.sleep(0.05)
    return time.monotonic() - started


def test_a_stopped_rank_is_replaced_without_a_person_and_no_request_is_lost(
    checkpoint: Callable[..., Path], launch: Launch, tmp_path: Path
) -> None:
    server = launch(checkpoint(), *LIMITS, "--num-shard", "2", "--dump-folder", str(tmp_path / "dumps"))
    undisturbed = streams.crowd_ids(server.url, REQUESTS)
    workers = sorted(server.children("millrace_worker"))
    crowd = streams.Crowd(server.url, REQUESTS)
    crowd.wait_started()
    os.kill(workers[1], signal.SIGSTOP)
    began = time.monotonic()
    assert seconds_until(server, "/health", 503, SECONDS_TO_NOTICE) < SECONDS_TO_NOTICE
    assert seconds_until(server, "/livez", 503, 1.0) + time.monotonic() - began < SECONDS_TO_NOTICE + 1.0
    transcripts = crowd.transcripts()
    assert [t.error for t in transcripts] == [None] * len(REQUESTS)
    assert [t.ids for t in transcripts] == undisturbed
    assert all(t.indices == list(range(1, len(t.ids) + 1)) for t in transcripts)
    server.wait_healthy()
    assert [status(server, path) for path in ("/livez", "/readyz", "/startupz")] == [200] * 3
    assert not set(server.children("millrace_worker")) & set(workers)
    (dump,) = (tmp_path / "dumps").iterdir()
    text = dump.read_text()
    assert "has not answered" in text
    assert "scheduler: Stats" in text
    assert "pipeline.py" in text, "the stacks of the rank that could still be asked"
    assert "brown fox" not in text + server.output()
