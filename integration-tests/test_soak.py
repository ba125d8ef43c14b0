"""Memory stays flat over 10,000 requests (`make soak`); a short form of it runs with every test."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from conftest import Launch, Server

REQUESTS = 10_000 if os.environ.get("MILLRACE_SOAK") else 600
WARM_UP = REQUESTS // 3
# What an allocator may keep between two looks. Over the 6,700 requests of the long form that is 1 and 2 KiB a request;
# the short form only sees coarse leaks.
ROUTER_SLACK_KIB, WORKER_SLACK_KIB = 7_000, 14_000


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def send(server: Server, client: httpx.Client, index: int) -> None:
    parameters = {"max_new_tokens": 16, "do_sample": index % 2 == 1, "details": index % 3 == 0}
    body = {"inputs": f"request {index}: " + "word " * (index % 50), "parameters": parameters}
    path = ("/generate", "/generate_stream")[index % 5 == 4]
    answer = client.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text


def test_soak_memory_stays_flat(checkpoint: Callable[..., Path], launch: Launch) -> None:
    server = launch(checkpoint(), "--dtype", "float32", "--max-total-tokens", "256", "--kv-cache-memory", "8000000")
    [router], [worker] = server.children("millrace-router"), server.children("millrace_worker")
    with httpx.Client(limits=httpx.Limits(max_connections=16)) as client, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: send(server, client, i), range(WARM_UP)))
        before = resident_kib(router), resident_kib(worker)
        list(pool.map(lambda i: send(server, client, i), range(WARM_UP, REQUESTS)))
        after = resident_kib(router), resident_kib(worker)
    print(f"resident KiB after {WARM_UP} and {REQUESTS} requests: router and worker {before} and {after}")
    assert after[0] - before[0] < ROUTER_SLACK_KIB
    assert after[1] - before[1] < WORKER_SLACK_KIB
