"""How fast health is answered at full load: `/livez`, `/readyz`, `/health`, and the worker's own grpc.health.v1.

Load: 64 streams and 192 further requests, so that steps have 256 rows, and a burst of conversations of 500 messages to
be tokenized, again and again; its clients are processes of their own. `make bench-health`, or
`python -m benchmarks.health --help`. What is measured includes the probing process, which waits for a core like others.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks import load, machine, models, processes, serving

PORT = 8107
ROUTES = ("/livez", "/readyz", "/health")
STREAMS, ROWS, NEW_TOKENS = 64, 256, 200
MESSAGES, BURST = 500, 8
PAUSE_SECONDS = 0.005


@contextmanager
def server(shape: str, folder: str) -> Iterator[str]:
    """A launcher that serves; yields the prefix of its workers' sockets."""
    prefix = f"{folder}/worker"
    command = [str(Path(sys.executable).parent / "millrace-launcher"), "--model-id", str(models.path(shape))]
    command += ["--hostname", "127.0.0.1", "--port", str(PORT), "--shard-uds-path", prefix]
    command += ["--max-concurrent-requests", "1024", "--max-batch-size", str(ROWS), "--max-total-tokens", "4096"]
    with Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        processes.wait_healthy(PORT, process)
        yield prefix
    finally:
        process.terminate()
        process.wait(60)


def keep_streams_running(shape: str, count: int) -> None:
    """Until it is ended."""
    turn = os.getpid()
    while True:
        prompts = models.prompts(models.path(shape), count, 32, seed=turn)
        load.measure(PORT, "/v1/completions", [load.completion(prompt, "tgi", NEW_TOKENS) for prompt in prompts])
        turn += 1


def keep_tokenizing() -> None:
    """Bursts of long conversations, until it is ended. None is like one before: nothing is remembered."""
    turn = 0
    while True:
        for number in range(BURST):
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
            body, kind = conversation(turn * BURST + number), {"Content-Type": "application/json"}
            connection.request("POST", "/chat_tokenize", body, kind)
            connection.getresponse().read()
            connection.close()
        turn += 1
        time.sleep(0.1)


def conversation(number: int) -> bytes:
    words = " ".join(f"word{number}{index}" for index in range(20))
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": f"{index} {words}"} for index in range(MESSAGES + 1)]
    return json.dumps({"model": "tgi", "messages": messages}).encode()


def asks_http(route: str) -> Callable[[], bool]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)

    def ask() -> bool:
        connection.request("GET", route)
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200

    return ask


def asks_worker(prefix: str) -> Callable[[], bool]:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    known: Any = health_pb2  # made at run time: type checkers see no names in it
    stub: Any = health_pb2_grpc.HealthStub(
        grpc.insecure_channel(f"unix:{prefix}-0", options=[("grpc.default_authority", "localhost")])
    )
    return lambda: stub.Check(known.HealthCheckRequest(), timeout=30).status == known.HealthCheckResponse.SERVING


def measure(name: str, ask: Callable[[], bool], seconds: float) -> str:
    """A row of the table: milliseconds at the median, the 99th percentile, and at most."""
    took: list[float] = []
    wrong = 0
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        began = time.perf_counter()
        wrong += not ask()
        took.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE_SECONDS)
    parts = statistics.quantiles(took, n=100)
    return f"| {name} | {len(took)} | {wrong} | {parts[49]:.2f} | {parts[98]:.2f} | {max(took):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=list(models.SHAPES))
    parser.add_argument("--seconds", type=float, default=15.0, help="per route and load")
    options = parser.parse_args()
    lines = ["| asked | times | not 200 | median ms | p99 ms | most ms |", "|---|---|---|---|---|---|"]
    description = machine.describe()
    with tempfile.TemporaryDirectory() as folder, server(options.model, folder) as prefix:
        asks = {route: asks_http(route) for route in ROUTES} | {"worker, grpc.health.v1": asks_worker(prefix)}
        lines += [measure(f"{name}, idle", ask, options.seconds / 3) for name, ask in asks.items()]
        context = multiprocessing.get_context("spawn")
        clients = [context.Process(target=keep_streams_running, args=(options.model, STREAMS), daemon=True)]
        clients += [context.Process(target=keep_streams_running, args=(options.model, ROWS - STREAMS), daemon=True)]
        clients += [context.Process(target=keep_tokenizing, daemon=True)]
        for client in clients:
            client.start()
        time.sleep(10)
        lines += [measure(f"{name}, full load", ask, options.seconds) for name, ask in asks.items()]
        for client in clients:
            with suppress(ProcessLookupError):
                client.kill()
            client.join()
    print("\n".join(lines))
    today = datetime.date.today().isoformat()
    text = (
        f"# Health at full load, {today}\n\n`make bench-health`. Machine: {description}\n\n" + "\n".join(lines) + "\n"
    )
    (serving.RESULTS / f"{today}-health.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
