"""Tokens per second through HTTP against the in-process floor and `transformers serve --continuous-batching`.

`make bench`, or `python -m benchmarks.serving --help`.
128 tokens in, 128 out, greedy, no end-of-sequence. Rounds alternate; whoever is not measured is stopped (SIGSTOP).
"""

from __future__ import annotations

import argparse
import datetime
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import machine, models, processes, report
from benchmarks.contest import InProcess, Limits, Point, Server, Side, Starter, contest

TOKENS = 128
RESULTS = Path(__file__).resolve().parent / "results"
SCRIPTS = Path(sys.executable).parent


def start_millrace(folder: Path, stack: ExitStack) -> Side:
    port = processes.free_port()
    command = [str(SCRIPTS / "millrace-launcher"), "--model-id", str(folder), "--port", str(port)]
    command += ["--hostname", "127.0.0.1", "--dtype", models.dtype_of(folder)]
    return start_server(processes.Program("millrace", command, {}), Server(port, "tgi"), stack)


def start_floor(folder: Path, stack: ExitStack) -> Side:
    command = [sys.executable, "-m", "benchmarks.floor", str(folder)]
    return start_in_process(processes.Program("floor", command, {}, asked_by_pipe=True), folder, stack)


def start_transformers(folder: Path, stack: ExitStack) -> Side:
    port = processes.free_port()
    command = [str(SCRIPTS / "transformers"), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", models.dtype_of(folder), "--continuous-batching"]
    command += ["--attn-implementation", "sdpa"]
    program = processes.Program("transformers", command, {"HF_HUB_OFFLINE": "1"})
    return start_server(program, Server(port, str(folder)), stack)


def start_server(program: processes.Program, server: Server, stack: ExitStack, seconds: float = 180.0) -> Side:
    process = stack.enter_context(processes.started(program))
    processes.wait_healthy(server.port, process, seconds)
    return Side(program.name, process, server)


def start_in_process(program: processes.Program, folder: Path, stack: ExitStack) -> Side:
    process = stack.enter_context(processes.started(program))
    asked = InProcess(process, folder)
    asked.wait_ready()
    return Side(program.name, process, asked)


STARTERS: dict[str, Starter] = {
    "millrace": start_millrace,
    "floor": start_floor,
    "transformers": start_transformers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "mid"], choices=list(models.SHAPES))
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3, help="at each point, if --point-seconds allows (3)")
    parser.add_argument("--point-seconds", type=float, default=240.0, help="no round begins that would pass it (240)")
    parser.add_argument("--peers", nargs="*", default=["floor", "transformers"], choices=list(STARTERS)[1:])
    options = parser.parse_args()
    names = ["millrace", *options.peers]
    points = [Point(TOKENS, TOKENS, streams) for streams in options.streams]
    description = machine.describe()
    outcomes = []
    for model in options.models:
        starters = {name: STARTERS[name] for name in names}
        outcomes.append(contest(model, starters, points, Limits(options.rounds, options.point_seconds)))
        print(*report.speed(outcomes[-1:], names, {}), sep="\n", flush=True)
    text = [
        f"# Serving speed, {datetime.date.today().isoformat()}\n",
        f'`make bench ARGS="{" ".join(sys.argv[1:])}"`: generated tokens per second, {TOKENS} tokens in and out, '
        "median of the alternating rounds; ratio of the rounds' pairs.\n",
        f"Machine: {description}\n",
        *report.speed(outcomes, names, {}),
        *report.failures(outcomes),
    ]
    keep("serving", text)


def keep(name: str, lines: list[str]) -> None:
    """Adds a run to the day's file: every run of a day is kept."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{datetime.date.today().isoformat()}-{name}.md"
    with file.open("a", encoding="utf-8") as opened:
        opened.write("\n".join(lines) + "\n\n")
    print(f"kept in {file}")


if __name__ == "__main__":
    main()
