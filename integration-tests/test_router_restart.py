"""A killed router is replaced while the workers keep their weights; a server that is asked to drain ends by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import Launch

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
KEY = {"Authorization": "Bearer right"}
BODY = {"inputs": "the quick brown", "parameters": {"max_new_tokens": 450, "details": True}}


def ids(url: str) -> list[int]:
    answer = httpx.post(f"{url}/generate", json=BODY, headers=KEY, timeout=120)
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def test_a_killed_router_costs_its_streams_and_nothing_else(checkpoint: Callable[..., Path], launch: Launch) -> None:
    server = launch(checkpoint(), *LIMITS, "--admin-routes", API_KEY="right")
    undisturbed = ids(server.url)
    workers, (router,) = server.children("millrace_worker"), server.children("millrace-router")
    with httpx.stream("POST", f"{server.url}/generate_stream", json=BODY, headers=KEY, timeout=60) as lost:
        lines = lost.iter_lines()
        assert next(lines).startswith("data:")
        os.kill(router, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(httpx.HTTPError):
            list(lines)
    server.wait_healthy()
    print(f"a new router after {time.monotonic() - began:.2f} s")
    assert server.children("millrace_worker") == workers
    assert server.children("millrace-router") != [router]
    assert ids(server.url) == undisturbed

    # Whoever holds the key may end the server: what runs ends well, newcomers go elsewhere.
    with httpx.stream("POST", f"{server.url}/generate_stream", json=BODY, headers=KEY, timeout=60) as last:
        lines = last.iter_lines()
        first = next(lines)
        assert httpx.post(f"{server.url}/admin/drain", timeout=10).status_code == 401
        assert httpx.post(f"{server.url}/admin/drain", headers=KEY, timeout=10).status_code == 202
        rest = [line for line in lines if line.startswith("data:")]
    assert len([first, *rest]) == len(undisturbed)
    assert "error" not in rest[-1]
    assert server.process.wait(30) == 0
