"""More than a server can do: who is admitted is served, who is not is told so before any stream opens."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import Launch, Server

LIMITS = ("--dtype", "float32", "--max-total-tokens", "4096", "--max-batch-size", "2", "--prefix-caching", "false")
CROWD = 60


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(checkpoint(), *LIMITS, "--max-queue-seconds", "0.1")


@contextmanager
def full(server: Server) -> Iterator[None]:
    """Both rows are taken, for as long as a sequence may be or until their clients leave, which is the end of this."""
    body = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    lines: list[Iterator[str]] = []  # a response whose lines nobody wants any more is closed
    with ExitStack() as stack:
        for _ in range(2):
            held = stack.enter_context(httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60))
            lines.append(held.iter_lines())
            assert next(lines[-1]).startswith("data: {")
        yield
    wait_idle(server)


def wait_idle(server: Server) -> None:
    names = ("millrace_queue_wait_seconds", "millrace_queued_tokens", "tgi_queue_size", "millrace_rows_used")
    deadline = time.monotonic() + 60
    while any(server.metric(name) for name in names):
        assert time.monotonic() < deadline, "something of a request stays behind"
        time.sleep(0.01)


def refusal(server: Server, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    response = httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)
    assert response.status_code == 429, response.text
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["content-type"] == "application/json"
    return response


def test_a_burst_is_served_or_refused_and_nothing_in_between(server: Server) -> None:
    def ask(number: int) -> httpx.Response:
        body = {"inputs": f"{number}", "parameters": {"max_new_tokens": 100}}
        return httpx.post(f"{server.url}/generate_stream", json=body, timeout=60)

    with ThreadPoolExecutor(CROWD) as pool:
        answers = list(pool.map(ask, range(CROWD)))
    refused = [answer for answer in answers if answer.status_code == 429]
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(served) >= 2
    assert len(served) + len(refused) == CROWD
    assert refused
    assert all('"generated_text":"' in answer.text and '"error_type"' not in answer.text for answer in served)
    assert all(answer.json()["error_type"] == "overloaded" for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    wait_idle(server)
    assert server.generate("a", max_new_tokens=2)["generated_text"]


def test_every_api_is_refused_in_its_own_words(server: Server) -> None:
    with full(server):
        check_refusals(server)
        # Other work, and the truth about health.
        assert httpx.post(f"{server.url}/tokenize", json={"inputs": "a"}).status_code == 200
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert server.metric('millrace_refusals_total{reason="wait"}') > 5


def check_refusals(server: Server) -> None:
    tgi = refusal(server, "/generate", {"inputs": "a"}).json()
    assert set(tgi) == {"error", "error_type"}
    assert "max_queue_seconds" in tgi["error"]
    refusal(server, "/", {"inputs": "a", "stream": True})
    refusal(server, "/v1/completions", {"prompt": "a", "stream": True})
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
    with pytest.raises(openai.RateLimitError, match="overloaded") as raised:
        client.completions.create(model="tgi", prompt="a", max_tokens=1)
    assert raised.value.code == "rate_limit_exceeded"
    # Nobody has read this body, and its sender is told all the same.
    refusal(server, "/generate", {"inputs": "a" * 1_500_000})
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0), timeout=30) as slow:
        head = (
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
        )
        slow.sendall(head + b"{")
        assert slow.recv(1 << 12).startswith(b"HTTP/1.1 429 ")


def test_who_would_be_too_late_is_refused_and_who_is_late_ends(server: Server) -> None:
    body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True, "timeout": 0.05}
    late = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert (late.status_code, late.json()["error_type"]) == (504, "timeout")
    with full(server):
        refused = refusal(server, "/generate", {"inputs": "a", "parameters": {"timeout": 0.001}})
        assert refused.json()["error_type"] == "overloaded"
        refusal(server, "/v1/completions", {"prompt": "a"}, **{"x-request-timeout": "0.001"})
    assert server.metric('tgi_request_failure{err="timeout"}') == 1
