"""A router that dies or hangs is replaced and the workers keep their weights; a server told to drain ends by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import Launch, Server

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
KEY = {"Authorization": "Bearer right"}
BODY = {"inputs": "the quick brown", "parameters": {"max_new_tokens": 450, "details": True}}


def ids(url: str) -> list[int]:
    answer = httpx.post(f"{url}/generate", json=BODY, headers=KEY, timeout=120)
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    """The last test of the module ends it."""
    return launch_module(checkpoint(), *LIMITS, "--admin-routes", API_KEY="right")


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[int]:
    return ids(server.url)


def test_a_router_that_stands_still_is_replaced_and_the_workers_stay(server: Server, undisturbed: list[int]) -> None:
    workers, (router,) = server.children("millrace_worker"), server.children("millrace-router")
    os.kill(router, signal.SIGSTOP)
    until = time.monotonic() + 90
    while (routers := server.children("millrace-router")) in ([], [router]):
        assert time.monotonic() < until, server.output()
        time.sleep(0.1)
    server.wait_healthy()
    assert server.children("millrace-router") == routers
    assert "The router hangs: killing it" in server.output()
    assert server.children("millrace_worker") == workers
    assert ids(server.url) == undisturbed


def test_a_killed_router_costs_its_streams_and_nothing_else(server: Server, undisturbed: list[int]) -> None:
    workers, (router,) = server.children("millrace_worker"), server.children("millrace-router")
    with httpx.stream("POST", f"{server.url}/generate_stream", json=BODY, headers=KEY, timeout=60) as lost:
        lines = lost.iter_lines()
        assert next(lines).startswith("data:")
        os.kill(router, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(httpx.HTTPError):
            list(lines)
    # Nobody is refused meanwhile: who connects waits for the new router.
    while httpx.get(f"{server.url}/health", timeout=60).status_code != 200:
        time.sleep(0.01)
    print(f"a new router serves {time.monotonic() - began:.2f} s after the old one was killed")
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
