"""The router's memory under clients that want all of it: what docs/operations.md states as a bound holds."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import string
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from conftest import Launch, Server

PLACES, PAYLOAD, CONNECTIONS, TOTAL_TOKENS, TOP_TOKENS, BEST_OF = 12, 200_000, 60, 2048, 5, 2
# Connections of HTTP/2 beside them, and the requests that each may have.
DEAF, STREAMS = 40, 200
FLAGS = (
    *("--max-concurrent-requests", str(PLACES), "--payload-limit", str(PAYLOAD)),
    *("--max-total-tokens", str(TOTAL_TOKENS), "--max-best-of", str(BEST_OF), "--max-top-n-tokens", str(TOP_TOKENS)),
)
KIB, MIB = 2**10, 2**20
# What docs/operations.md states. A place: bodies as they come, were sent and were read, and what goes with them; events
# that lie unread; an answer of /tokenize, or one that is gathered whole.
REMEMBERED = (64 + 8) * MIB
LOGPROBS = 128 * min(2**20, PLACES * TOTAL_TOKENS * (1 + TOP_TOKENS))
PLACE = (20 + 64) * PAYLOAD + MIB + BEST_OF * TOTAL_TOKENS * (1 + TOP_TOKENS) * 256
PAGES, KEPT = 8 * MIB, 64 * MIB
BOUND = REMEMBERED + LOGPROBS + PLACES * PLACE + CONNECTIONS * 256 * KIB + DEAF * 2 * MIB + PAGES + KEPT


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
        ("/tokenize", json.dumps({"inputs": words(size)})),
        ("/generate", json.dumps({"inputs": words(size)})),
        ("/v1/completions", json.dumps({"prompt": [7] * (size // 3)})),
        ("/generate", '{"inputs":' + "[" * (size // 2)),
        ("/v1/chat/completions", json.dumps({"messages": [message] * (size // 65)})),
        ("/v1/chat/completions", json.dumps({"messages": [message], "x": [[1]] * (size // 8)})),
        *[("/generate", json.dumps({"inputs": words(1500), "parameters": logprobs})) for _ in range(4)],
        *[("/generate", json.dumps({"inputs": words(20), "parameters": whole})) for _ in range(3)],
    ]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def deaf(port: int, path: bytes, window: int) -> socket.socket:
    """A client of HTTP/2 that asks for `path` as often as it may, and takes so many bytes of each answer."""
    settings, headers, initial_window_size = 4, 1, 4
    head = b"\x82\x86\x04" + bytes((len(path),)) + path + b"\x01\x01x"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    connection.sendall(frame(settings, 0, 0, struct.pack(">HI", initial_window_size, window)))
    connection.sendall(b"".join(frame(headers, 5, 2 * index + 1, head) for index in range(STREAMS)))
    return connection


def answers_begun(connection: socket.socket) -> int:
    """Of those that a deaf client has asked for; reads what has come until every one has begun."""
    begun, read = 0, b""
    connection.settimeout(60)
    while begun < STREAMS:
        read += connection.recv(1 << 16)
        while len(read) >= 9 and len(read) >= 9 + int.from_bytes(read[:3]):
            begun += read[3] == 1
            read = read[9 + int.from_bytes(read[:3]) :]
    return begun


def test_answers_that_nobody_reads_take_no_more_memory_than_stated(
    checkpoint: Callable[..., Path], launch: Launch
) -> None:
    server = launch(checkpoint(), "--dtype", "float32")
    router, port = router_of(server), int(server.url.rsplit(":", 1)[1])
    page = len(httpx.get(server.url + "/metrics").content)
    before = resident(router, "VmRSS")
    # Nothing, a little, as much as the server likes to write at once: which is nothing, too, to who does not look.
    unread = [deaf(port, b"/metrics", window) for window in (0, 5, 2**31 - 1) for _ in range(DEAF // 3)]
    assert sum(map(answers_begun, unread)) == STREAMS * len(unread)
    taken = resident(router, "VmHWM") - before
    if os.environ.get("MILLRACE_SHOW"):
        print(f"{taken / MIB:.0f} MiB for {len(unread)} connections, a page has {page / KIB:.0f} KiB")
    assert taken <= 2 * MIB * len(unread) + PAGES
    # Who reads is told what is true now, or was a few seconds ago.
    assert len(httpx.get(server.url + "/metrics").content) >= page // 2
    for connection in unread:
        connection.close()


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
    tokenize = head.replace(b"/generate_stream", b"/tokenize")
    unread += [connect(tokenize, json.dumps({"inputs": words(PAYLOAD - 200)}).encode()) for _ in range(PLACES // 4)]
    # Most of each body, and nothing more of it: together more than bodies under way may have.
    unread += [deaf(port, path, 0) for path in (b"/metrics", b"/info") for _ in range(DEAF // 2)]
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
    assert answered >= PLACES // 2
    assert taken <= BOUND, f"{taken / MIB:.0f} MiB, {BOUND / MIB:.0f} were stated"
    server.wait_healthy()
