"""The router's memory under clients that want all of it: what docs/operations.md states as a bound holds."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import string
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from conftest import Launch, Server

PLACES, PAYLOAD, CONNECTIONS, TOTAL_TOKENS, TOP_TOKENS, BEST_OF = 12, 200_000, 60, 2048, 5, 2
FLAGS = (
    *("--max-concurrent-requests", str(PLACES), "--payload-limit", str(PAYLOAD)),
    *("--max-total-tokens", str(TOTAL_TOKENS), "--max-best-of", str(BEST_OF), "--max-top-n-tokens", str(TOP_TOKENS)),
)
KIB, MIB = 2**10, 2**20
# What docs/operations.md states. A place: bodies as they come, were sent and were read, and what goes with them; events
# that lie unread; an answer that is gathered whole.
REMEMBERED = (64 + 8) * MIB
LOGPROBS = 128 * min(2**20, PLACES * TOTAL_TOKENS * (1 + TOP_TOKENS))
PLACE = 20 * PAYLOAD + MIB + BEST_OF * TOTAL_TOKENS * (1 + TOP_TOKENS) * 256
BOUND = REMEMBERED + LOGPROBS + PLACES * PLACE + CONNECTIONS * 256 * KIB + 64 * MIB


def router_of(server: Server) -> int:
    """The process that the launcher started."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            told = status.read_text()
        except OSError:
            continue
        if f"PPid:\t{server.process.pid}\n" in told and "Name:\tmillrace-router" in told:
            return int(status.parent.name)
    raise AssertionError("there is no router")


def resident(process: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found
    return int(found[1]) * 1024


def words(length: int) -> str:
    return "".join(random.choices(string.ascii_lowercase + "     ", k=length))


def bodies() -> list[tuple[str, str]]:
    size = PAYLOAD - 200
    message = {"role": "user", "content": words(30)}
    logprobs = {"decoder_input_details": True, "top_n_tokens": TOP_TOKENS, "max_new_tokens": 1}
    whole = {"best_of": BEST_OF, "do_sample": True, "details": True, "top_n_tokens": TOP_TOKENS}
    whole |= {"max_new_tokens": 1000, "ignore_eos_token": True}
    return [
        ("/generate", json.dumps({"inputs": words(size)})),
        ("/v1/completions", json.dumps({"prompt": [7] * (size // 3)})),
        ("/generate", '{"inputs":' + "[" * (size // 2)),
        ("/v1/chat/completions", json.dumps({"messages": [message] * (size // 65)})),
        ("/v1/chat/completions", json.dumps({"messages": [message], "x": [[1]] * (size // 8)})),
        *[("/generate", json.dumps({"inputs": words(1500), "parameters": logprobs})) for _ in range(4)],
        *[("/generate", json.dumps({"inputs": words(20), "parameters": whole})) for _ in range(3)],
    ]


def test_hostile_clients_take_no_more_memory_than_stated(checkpoint: Callable[..., Path], launch: Launch) -> None:
    server = launch(checkpoint(), "--dtype", "float32", *FLAGS, "--enable-prefill-logprobs")
    router, port = router_of(server), int(server.url.rsplit(":", 1)[1])
    server.generate("a", max_new_tokens=1)
    before = resident(router, "VmRSS")

    def connect(head: bytes, body: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % (len(body) or PAYLOAD) + body)
        return connection

    head = b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    endless = {"max_new_tokens": 1500, "ignore_eos_token": True, "top_n_tokens": 5, "details": True}
    unread = [
        connect(head, json.dumps({"inputs": words(20), "parameters": endless}).encode()) for _ in range(PLACES // 3)
    ]
    # Most of each body, and nothing more of it: together more than bodies under way may have.
    half_open = [connect(head, b"") for _ in range(CONNECTIONS * 2 // 3)]
    for connection in half_open:
        connection.sendall(b" " * (PAYLOAD * 3 // 4))
    until = time.monotonic() + 5.0

    def attack(_: int) -> int:
        answered = 0
        with httpx.Client(timeout=60) as client:
            while time.monotonic() < until:
                path, body = random.choice(bodies())
                answer = client.post(server.url + path, content=body, headers={"content-type": "application/json"})
                assert answer.status_code < 500, answer.text
                answered += 1
        return answered

    with ThreadPoolExecutor(PLACES) as pool:
        answered = sum(pool.map(attack, range(PLACES)))
    taken = resident(router, "VmHWM") - before
    for connection in unread + half_open:
        connection.close()
    if os.environ.get("MILLRACE_SHOW"):
        print(f"{answered} answers, {taken / MIB:.0f} MiB of {BOUND / MIB:.0f}")
    assert answered > 20
    assert taken <= BOUND, f"{taken / MIB:.0f} MiB, {BOUND / MIB:.0f} were stated"
    server.wait_healthy()
