"""Ten times what a server can do, for minutes: who is admitted is served as promised, who is not is told so at once.

`make bench-overload`, or `python -m benchmarks.overload --help`. First the server alone: as many clients as it has
rows, each asking again when answered (how long a request takes in a full batch), then half as many more (the peak:
rows are never empty). Then arrivals at random at ten times the peak's rate, which wait for nobody, and the peak once
more. All requests are streams of `/generate_stream` with prompts and outputs of mixed lengths.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import statistics
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import flood, machine, models, processes, serving
from benchmarks.flood import Answer, Ask

WARM_SECONDS = 8.0
ALLOWED_GROWTH = 20 * 2**20
REFUSALS = "millrace_refusals_total"


@dataclass(frozen=True)
class Plan:
    """What is done to which server."""

    model: str
    rows: int
    queue_seconds: float
    seconds: float
    alone_seconds: float
    factor: float
    router: str


@dataclass(frozen=True)
class Figure:
    """One line of the result, and whether it is as it should be; none where nothing is demanded."""

    name: str
    value: str
    is_good: bool | None = None


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of all lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def tokens_per_second(answers: list[Answer], begin: float, end: float) -> float:
    """Of whole answers, each spread evenly from its first token to its end, what lies between two times."""
    total = 0.0
    for one in answers:
        if one.is_whole and one.ended > one.first:
            inside = min(one.ended, end) - max(one.first, begin)
            total += one.new_tokens * max(inside, 0.0) / (one.ended - one.first)
    return total / (end - begin)


def between(answers: list[Answer], seconds: float) -> tuple[float, float]:
    """The part of a phase in which the server is busy in the same way all the time."""
    begin = min(one.sent for one in answers)
    return begin + min(WARM_SECONDS, seconds / 4), begin + seconds


class Requests:
    """An endless supply: prompts that nobody has sent before, outputs of mixed length."""

    def __init__(self, model: str, seed: int) -> None:
        self._texts = models.prompts(models.path(model), 64, 48, seed)
        self._chance = random.Random(seed)

    def __call__(self) -> Ask:
        new_tokens = self._chance.randrange(32, 97)
        # A beginning of its own: prefix caches find nothing.
        text = f"{self._chance.random()} {self._chance.choice(self._texts)}"
        body: dict[str, object] = {"inputs": text, "parameters": {"max_new_tokens": new_tokens}}
        return flood.ask("/generate_stream", body, new_tokens)


class Memory:
    """Resident bytes of every process of the server, once a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.pids = processes.family(pid)
        self.samples: dict[int, list[int]] = {pid: [] for pid in self.pids}

    def look(self) -> None:
        for pid, samples in self.samples.items():
            status = Path(f"/proc/{pid}/status")
            lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
            samples.extend(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    def is_same(self) -> bool:
        return processes.family(self._pid) == self.pids

    def growth(self) -> int:
        """The largest growth of a process from the second quarter of the time to the last; the first fills caches."""
        return max((round(grown(samples)) for samples in self.samples.values() if len(samples) >= 4), default=0)


class Work:
    """Shares of all cores that clients, router and workers have had since it was made."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._began, self._before = time.perf_counter(), self._seconds()

    def _seconds(self) -> dict[str, float]:
        spent = {"clients": time.process_time(), "router": 0.0, "workers": 0.0}
        for pid in self._pids:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            name = "router" if b"millrace-router" in command else "workers"
            spent[name] += processes.processor_seconds(Path(f"/proc/{pid}/stat"))
        return spent

    def shares(self) -> str:
        cores = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        now = self._seconds()
        return ", ".join(f"{name} {(now[name] - before) / cores:.1%}" for name, before in self._before.items())


def grown(samples: list[int]) -> float:
    quarter = len(samples) // 4
    return statistics.fmean(samples[-quarter:]) - statistics.fmean(samples[quarter : 2 * quarter])


def metric(port: int, series: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


def start(plan: Plan, stack: ExitStack) -> tuple[int, int]:
    """The port and the process of a server that is ready."""
    folder, port = models.path(plan.model), processes.free_port()
    command = [str(serving.SCRIPTS / "millrace-launcher"), "--model-id", str(folder), "--port", str(port)]
    command += ["--hostname", "127.0.0.1", "--dtype", models.dtype_of(folder), "--max-batch-size", str(plan.rows)]
    command += ["--max-queue-seconds", str(plan.queue_seconds), "--max-concurrent-requests", "1024"]
    environment = {"MILLRACE_ROUTER": plan.router} if plan.router else {}
    process = stack.enter_context(processes.started(processes.Program("overload", command, environment)))
    processes.wait_healthy(port, process)
    return port, process.pid


def measure(plan: Plan) -> list[Figure]:
    with ExitStack() as stack:
        port, pid = start(plan, stack)
        flood.yield_to_server()
        make = Requests(plan.model, seed=0)
        flood.in_turn(port, make, plan.rows, WARM_SECONDS)
        full = flood.in_turn(port, make, plan.rows, plan.alone_seconds)
        more = plan.rows + max(plan.rows // 2, 1)

        def peak() -> float:
            answers = flood.in_turn(port, make, more, plan.alone_seconds)
            return tokens_per_second(answers, *between(answers, plan.alone_seconds))

        before = peak()
        memory, work = Memory(pid), Work(processes.family(pid))
        rate = plan.factor * before / 64  # 64 tokens is the mean output
        refused_before = metric(port, REFUSALS)
        answers = flood.arriving(port, make, rate, plan.seconds, memory.look)
        refusals = metric(port, REFUSALS) - refused_before
        shares = work.shares()
        after = peak()
        restarts = metric(port, "millrace_worker_restarts_total")
        figures = [*alone(full, before, after), *of_admitted(plan, full, answers, (before + after) / 2)]
        figures += of_refused(answers, refusals)
        return [*figures, Figure("of all cores in the flood", shares), *of_processes(memory, restarts)]


def alone(full: list[Answer], before: float, after: float) -> list[Figure]:
    latencies = [one.ended - one.sent for one in full]
    return [
        Figure(
            "a request in a full batch, p50 / p99",
            f"{quantile(latencies, 0.5):.2f} / {quantile(latencies, 0.99):.2f} s",
        ),
        Figure("peak before / after", f"{before:.0f} / {after:.0f} tokens/s"),
    ]


def of_admitted(plan: Plan, full: list[Answer], answers: list[Answer], peak: float) -> list[Figure]:
    admitted = [one for one in answers if one.status == 200]
    reached = tokens_per_second(answers, *between(answers, plan.seconds))
    promised = plan.queue_seconds + quantile([one.ended - one.sent for one in full], 0.99)
    begun = plan.queue_seconds + quantile([one.first - one.sent for one in full], 0.99)
    latency = quantile([one.ended - one.sent for one in admitted], 0.99)
    first = quantile([one.first - one.sent for one in admitted], 0.99)
    num_cut = sum(not one.is_whole for one in admitted)
    return [
        Figure("requests sent / admitted", f"{len(answers)} / {len(admitted)}", len(admitted) > 0),
        Figure("admitted and not finished", f"{num_cut}", num_cut == 0),
        Figure("admitted throughput", f"{reached:.0f} tokens/s, {reached / peak:.3f} of peak", reached >= 0.95 * peak),
        Figure(
            "p99 latency of the admitted",
            f"{latency:.2f} s, {latency / promised:.2f} of the promised {promised:.2f} s",
            latency <= 1.5 * promised,
        ),
        Figure(
            "p99 until the first token",
            f"{first:.2f} s, {first / begun:.2f} of the promised {begun:.2f} s",
            first <= 1.5 * begun,
        ),
    ]


def of_refused(answers: list[Answer], counted: float) -> list[Figure]:
    refused = [one for one in answers if one.status != 200]
    good = [one for one in refused if is_polite(one)]
    pauses = [float(one.retry_after) for one in good]
    waits = [one.ended - one.sent for one in refused]
    others = sorted({one.status for one in refused} - {429})
    return [
        Figure(
            "refused / of them 429, JSON, with Retry-After", f"{len(refused)} / {len(good)}", len(refused) == len(good)
        ),
        Figure("other statuses (0: no answer)", f"{others or 'none'}", not others),
        Figure("refusals that the server counted", f"{counted:.0f}", counted == len(refused)),
        Figure("Retry-After, p50 / p99", f"{quantile(pauses, 0.5):.0f} / {quantile(pauses, 0.99):.0f} s"),
        Figure(
            "time to a refusal, p50 / p99", f"{quantile(waits, 0.5) * 1e3:.1f} / {quantile(waits, 0.99) * 1e3:.1f} ms"
        ),
    ]


def is_polite(one: Answer) -> bool:
    is_pause = one.retry_after.isdigit() and int(one.retry_after) >= 1
    return one.status == 429 and is_pause and one.content_type == "application/json"


def of_processes(memory: Memory, restarts: float) -> list[Figure]:
    growth = memory.growth()
    return [
        Figure("largest growth of a process", f"{growth / 2**20:.1f} MiB", growth <= ALLOWED_GROWTH),
        Figure(
            "processes are the same / restarts of workers",
            f"{memory.is_same()} / {restarts:.0f}",
            memory.is_same() and not restarts,
        ),
    ]


def table(figures: list[Figure]) -> list[str]:
    verdict = {None: "", True: "yes", False: "**no**"}
    rows = [f"| {figure.name} | {figure.value} | {verdict[figure.is_good]} |" for figure in figures]
    return ["| what | figure | as demanded |", "|---|---|---|", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mid", choices=list(models.SHAPES))
    parser.add_argument("--rows", type=int, default=16, help="sequences that the server computes at once (16)")
    parser.add_argument("--queue-seconds", type=float, default=6.0, help="--max-queue-seconds of the server (6)")
    parser.add_argument("--seconds", type=float, default=300.0, help="of overload (300)")
    parser.add_argument("--alone-seconds", type=float, default=40.0, help="of each measurement without overload (40)")
    parser.add_argument("--factor", type=float, default=10.0, help="arrivals over what the server can do (10)")
    parser.add_argument("--router", default="", help="another router program than the installed one")
    options = parser.parse_args()
    plan = Plan(**vars(options))
    description = machine.describe()
    figures = measure(plan)
    lines = table(figures)
    print(*lines, sep="\n")
    title = f"# {plan.factor:g} times too much for {plan.seconds:.0f} s, {datetime.date.today().isoformat()}\n"
    how = f"`{plan.model}`, {plan.rows} rows, --max-queue-seconds {plan.queue_seconds:g}. Machine: {description}\n"
    serving.keep("overload", [title, how, *lines])
    sys.exit(0 if all(figure.is_good is not False for figure in figures) else 1)


if __name__ == "__main__":
    main()
