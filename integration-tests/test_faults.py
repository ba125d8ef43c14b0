"""Faults are caused, not simulated: killed ranks, signals, clients that vanish."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import streams
from conftest import Launch, Server

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
REQUESTS = streams.mixed_requests(16, new_tokens=160)
# Everything that changes which token comes next, or is told of it, in one request.
EVERYTHING = {
    "max_new_tokens": 350,
    "do_sample": True,
    "seed": 77,
    "temperature": 0.8,
    "top_p": 0.9,
    "top_k": 40,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
    "watermark": True,
    "grammar": {"type": "regex", "value": "[a-z .,]{5000}"},
    "top_n_tokens": 3,
}
PROMPT = "everything at once, " * 5


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    """Of one rank; what happens to several is in chaos/test_chaos.py."""
    return launch_module(checkpoint(), *LIMITS)


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[list[int]]:
    return streams.crowd_ids(server.url, REQUESTS)


def test_a_killed_rank_costs_no_request(server: Server, undisturbed: list[list[int]]) -> None:
    expected = list(streams.events(server.url, PROMPT, **EVERYTHING))
    assert len(expected) == EVERYTHING["max_new_tokens"]
    assert all(len(event["top_tokens"]) == EVERYTHING["top_n_tokens"] for event in expected)
    crowd, seen, workers = streams.Crowd(server.url, REQUESTS), [], []
    for event in streams.events(server.url, PROMPT, **EVERYTHING):
        seen.append(event)
        if len(seen) == 20:
            crowd.wait_started()
            workers = server.kill_worker()
            check_information(server)
    transcripts = crowd.transcripts()
    assert seen == expected, "with the logprobs of tokens and of the likeliest others"
    assert [t.error for t in transcripts] == [None] * 16
    assert [t.ids for t in transcripts] == undisturbed
    assert all(t.indices == list(range(1, len(t.ids) + 1)) for t in transcripts)
    server.wait_replaced(workers)
    assert streams.crowd_ids(server.url, REQUESTS[:4]) == undisturbed[:4]


def check_information(server: Server) -> None:
    """HTTP stays open while there is no worker: health is the truth, and information is still there."""
    assert httpx.get(f"{server.url}/info", timeout=10).status_code == 200


GAUGES = (
    "tgi_queue_size",
    "tgi_batch_current_size",
    "millrace_rows_used",
    "millrace_kv_pages_used",
)


def vanish(server: Server, chance: random.Random) -> None:
    """Sends a request and closes the connection at a random point."""
    port = int(server.url.rpartition(":")[2])
    streamed = chance.random() < 0.7
    body = f'{{"inputs": "{"go " * chance.randint(1, 90)}", "parameters": {{"max_new_tokens": 150}}}}'
    path = "/generate_stream" if streamed else "/generate"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        data = (head + body).encode()
        client.sendall(data[: chance.randint(1, len(data))] if chance.random() < 0.2 else data)
        client.settimeout(chance.random() * 0.2)
        try:
            if streamed:
                client.recv(chance.randint(1, 4096))
        except TimeoutError:
            pass


def test_clients_that_vanish_leave_nothing_behind(server: Server) -> None:
    expected = server.generate("still here?", max_new_tokens=20)
    chance = random.Random(20)
    for _ in range(300):
        vanish(server, chance)
    deadline = time.monotonic() + 60
    while any(server.metric(name) for name in GAUGES) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert {name: server.metric(name) for name in GAUGES} == dict.fromkeys(GAUGES, 0.0)
    assert server.generate("still here?", max_new_tokens=20) == expected


def test_sigterm_lets_running_streams_finish(server: Server, undisturbed: list[list[int]]) -> None:
    """The last one: it is the end of the module's server."""
    crowd = streams.Crowd(server.url, REQUESTS)
    crowd.wait_started()
    server.process.send_signal(signal.SIGTERM)
    transcripts = crowd.transcripts()
    assert [t.error for t in transcripts] == [None] * 16
    assert [t.ids for t in transcripts] == undisturbed
    assert server.process.wait(60) == 0
