"""Ranks that exchange over sockets, without native kernels: one that dies or stands still leaves nobody waiting."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import streams
from conftest import Launch, Server

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300", "--num-shard", "2")
REQUESTS = streams.mixed_requests(8, new_tokens=100)


def lose(server: Server, how: signal.Signals) -> None:
    """A rank, under load: everybody gets all tokens, and both ranks are others than before."""
    before = server.children("millrace_worker")
    assert len(before) == 2
    crowd = streams.Crowd(server.url, REQUESTS)
    crowd.wait_started()
    os.kill(max(before), how)
    transcripts = crowd.transcripts()
    server.wait_healthy()
    assert [t.error for t in transcripts] == [None] * len(REQUESTS)
    assert all(t.finish_reason and t.indices == list(range(1, len(t.ids) + 1)) for t in transcripts)
    assert not set(server.children("millrace_worker")) & set(before)


def test_a_lost_rank_holds_nobody_in_a_collective(checkpoint: Callable[..., Path], launch: Launch) -> None:
    server = launch(checkpoint(), *LIMITS, MILLRACE_CPU_KERNELS="off")
    for how in (signal.SIGKILL, signal.SIGSTOP):
        lose(server, how)
    assert server.metric("millrace_worker_restarts_total") == 2
    assert "ranks exchange through shared memory" not in server.output()
