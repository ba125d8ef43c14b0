"""Tokens per second through HTTP against the in-process floor and `transformers serve --continuous-batching`.

`make bench`, or `python -m benchmarks.serving --help`.
128 tokens in, 128 out, greedy, no end-of-sequence. Rounds alternate; whoever is not measured is stopped (SIGSTOP).
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

from benchmarks import load, machine, models

TOKENS = 128
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Side:
    """One contestant: a process, and for servers a port and the name it knows the model by."""

    name: str
    process: subprocess.Popen[str]
    port: int = 0
    model: str = "tgi"
    seconds: dict[int, list[float]] = field(default_factory=dict)
    first: dict[int, list[float]] = field(default_factory=dict)

    def run(self, folder: Path, streams: int, seed: int) -> None:
        if self.port:
            prompts = models.prompts(folder, streams, TOKENS, seed)
            bodies = [load.completion(prompt, self.model, TOKENS) for prompt in prompts]
            measured = load.measure(self.port, "/v1/completions", bodies)
            seconds = measured.seconds
            self.first.setdefault(streams, []).append(statistics.median(measured.first_token_seconds))
        else:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(f"{streams} {TOKENS} {TOKENS} {seed}\n")
            self.process.stdin.flush()
            seconds = float(self.process.stdout.readline())
        self.seconds.setdefault(streams, []).append(seconds)

    def rate(self, streams: int) -> float:
        return streams * TOKENS / statistics.median(self.seconds[streams])

    def signal(self, number: int) -> None:
        for pid in family(self.process.pid):
            os.kill(pid, number)


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [pid, *(d for child in listed.stdout.split() for d in family(int(child)))]


def wait_healthy(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(1800):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                if answer.status == 200:
                    return
        except (URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.1)
    raise RuntimeError("not healthy after 180 s")


@contextmanager
def started(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE if "benchmarks.floor" in command else subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment
    )
    try:
        yield process
    finally:
        for pid in family(process.pid):
            os.kill(pid, signal.SIGCONT)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def start(name: str, folder: Path, stack: ExitStack) -> Side:
    scripts, dtype = Path(sys.executable).parent, "float32" if folder.name == "tiny" else "bfloat16"
    if name == "floor":
        process = stack.enter_context(started([sys.executable, "-m", "benchmarks.floor", str(folder)]))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return Side(name, process)
    if name == "millrace":
        command = [str(scripts / "millrace-launcher"), "--model-id", str(folder), "--port", "8101"]
        process = stack.enter_context(started([*command, "--hostname", "127.0.0.1", "--dtype", dtype]))
        wait_healthy(8101, process)
        return Side(name, process, 8101)
    command = [str(scripts / "transformers"), "serve", str(folder), "--host", "127.0.0.1", "--port", "8102"]
    command += ["--device", "cpu", "--dtype", dtype, "--continuous-batching", "--attn-implementation", "sdpa"]
    process = stack.enter_context(started(command, HF_HUB_OFFLINE="1"))
    wait_healthy(8102, process)
    return Side(name, process, 8102, model=str(folder))


def contest(shape: str, names: list[str], streams: list[int], rounds: int) -> list[str]:
    """Table rows for one model."""
    folder = models.path(shape)
    with ExitStack() as stack:
        sides = [start(name, folder, stack) for name in names]
        for side in sides:  # warm up, then stop
            side.run(folder, max(streams), seed=0)
            side.seconds.clear()
            side.first.clear()
            side.signal(signal.SIGSTOP)
        for count in streams:
            for turn in range(rounds):
                for side in sides:
                    side.signal(signal.SIGCONT)
                    side.run(folder, count, seed=1 + turn + 100 * count)
                    side.signal(signal.SIGSTOP)
        return [row(shape, count, sides) for count in streams]


def row(shape: str, count: int, sides: list[Side]) -> str:
    ours = sides[0]
    cells = [f"{ours.rate(count):.0f}"]
    for other in sides[1:]:
        paired = [b / a for a, b in zip(ours.seconds[count], other.seconds[count], strict=True)]
        cells.append(f"{other.rate(count):.0f}")
        cells.append(f"**{statistics.median(paired):.2f}** ({min(paired):.2f} to {max(paired):.2f})")
    return f"| {shape} | {count} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "mid"], choices=list(models.SHAPES))
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=["floor", "transformers"])
    options = parser.parse_args()
    names = ["millrace", *options.peers]
    head = "| model | streams | millrace | " + " | ".join(f"{n} | ratio" for n in options.peers) + " |"
    lines = [f"Machine: {machine.describe()}", "", head, "|---" * (3 + 2 * len(options.peers)) + "|"]
    for shape in options.models:
        lines += contest(shape, names, options.streams, options.rounds)
        print(*lines[-len(options.streams) :], sep="\n", flush=True)
    today = datetime.date.today().isoformat()
    text = f'# Serving speed, {today}\n\n`make bench ARGS="{" ".join(sys.argv[1:])}"`: generated tokens per second, '
    text += (
        f"{TOKENS} tokens in and out, median of {options.rounds} alternating rounds; ratio of the rounds' pairs.\n\n"
    )
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{today}-serving.md").open("a", encoding="utf-8") as file:  # every run of a day is kept
        file.write(text + "\n".join(lines) + "\n\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
