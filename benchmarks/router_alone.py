"""The router alone: a worker that answers at once, many streams; tokens per second and router CPU per streamed token.

`make bench-router`, or `python -m benchmarks.router_alone --help`. Logs are on, as they are by default. CPU time is the
router process's own user and system time (`/proc/PID/stat`), so the load generator does not count.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import load, machine, models, processes, serving

ROOT = Path(__file__).resolve().parent.parent
PORT = 8103
ROUTES = ("/generate_stream", "/v1/chat/completions", "/v1/completions", "/generate")


@contextmanager
def router(prefix: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """A fake worker and a router in front of it, both stopped at the end."""
    programs = ROOT / "target" / "release"
    worker = subprocess.Popen(
        [
            str(programs / "millrace-fake-worker"),
            "--uds-path",
            prefix,
            "--cheap",
            "--vocab",
            "8192",
            "--pages",
            "100000",
        ]
    )
    command = [str(ROOT / ".venv" / "bin" / "millrace-router"), "--worker-uds-path", prefix, "--num-shard", "1"]
    command += ["--model-id", "tiny", "--model-path", str(models.path("tiny")), "--port", str(PORT)]
    command += ["--hostname", "127.0.0.1", "--max-concurrent-requests", "1024", "--max-batch-size", "512"]
    command += ["--max-total-tokens", "2048", "--max-input-tokens", "1024", "--waiting-served-ratio", "0"]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, text=True)
    try:
        processes.wait_healthy(PORT, process)
        yield process
    finally:
        for one in (process, worker):
            one.terminate()
            one.wait(10)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def body(route: str, prompt: str, new_tokens: int) -> dict[str, Any]:
    if route == "/v1/chat/completions":
        messages = [{"role": "user", "content": prompt}]
        completion = load.completion(prompt, "tgi", new_tokens)
        return {key: value for key, value in completion.items() if key != "prompt"} | {"messages": messages}
    if route.startswith("/v1"):
        return load.completion(prompt, "tgi", new_tokens)
    return {"inputs": prompt, "parameters": {"max_new_tokens": new_tokens}}


def measure(process: subprocess.Popen[str], route: str, streams: int, new_tokens: int, rounds: int) -> str:
    """A table row: all rounds together."""
    tokens, cpu, seconds = 0, 0.0, 0.0
    for turn in range(rounds + 1):
        prompts = models.prompts(models.path("tiny"), streams, 16, seed=turn)
        bodies = [body(route, prompt, new_tokens) for prompt in prompts]
        before, started = cpu_seconds(process.pid), time.perf_counter()
        load.measure(PORT, route, bodies)
        if turn:  # the first round warms up
            tokens += streams * new_tokens
            cpu += cpu_seconds(process.pid) - before
            seconds += time.perf_counter() - started
    return f"| {route} | {streams} | {tokens / seconds:,.0f} | {cpu / tokens * 1e6:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = ["| route | streams | tokens/s | µs of router CPU per token |", "|---|---|---|---|"]
    description = machine.describe()
    with tempfile.TemporaryDirectory() as folder, router(f"{folder}/worker", Path(folder) / "log") as process:
        for route in ROUTES:
            for streams in options.streams:
                lines.append(measure(process, route, streams, options.new_tokens, options.rounds))
                print(lines[-1], flush=True)
    today = datetime.date.today().isoformat()
    text = f"# The router alone, {today}\n\n`make bench-router`. Machine: {description}\n\n" + "\n".join(lines) + "\n"
    (serving.RESULTS / f"{today}-router-alone.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
