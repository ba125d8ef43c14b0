"""One tenant floods the server, another sends a modest, steady load: what does the flood cost the other?

`make bench-tenants`, or `python -m benchmarks.tenants --help`. The steady tenant is measured alone, then beside the
flood, in turns on one server; arrivals of both are random and wait for nobody. The flood is a process of its own. It
sends short prompts with long outputs, or, as a second figure, long prompts with short outputs.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import flood, machine, models, processes, serving
from benchmarks.flood import Answer, Ask
from benchmarks.overload import Figure, metric, quantile, table

KEYS = {"flood": "sk-flood-0123456789", "steady": "sk-steady-0123456789"}
WARM_SECONDS = 6.0
PROMPT_TOKENS = 48
LONG_PROMPT_TOKENS = 1500


@dataclass(frozen=True)
class Plan:
    """What is done to which server."""

    model: str
    rows: int
    seconds: float
    rounds: int
    steady: float
    factor: float
    long_prompts: bool
    router: str


@dataclass(frozen=True)
class Round:
    """The steady tenant's answers alone and beside the flood, and the flood's own."""

    alone: list[Answer]
    beside: list[Answer]
    flood: list[Answer]


class Requests:
    """An endless supply for one tenant: prompts that nobody has sent before."""

    def __init__(self, model: str, tenant: str, lengths: tuple[int, int], prompt_tokens: int, seed: int) -> None:
        self._texts = models.prompts(models.path(model), 64, prompt_tokens, seed)
        self._chance = random.Random(seed)
        self._key, self._lengths = KEYS[tenant], lengths

    def __call__(self) -> Ask:
        new_tokens = self._chance.randint(*self._lengths)
        text = f"{self._chance.random()} {self._chance.choice(self._texts)}"
        body: dict[str, object] = {"inputs": text, "parameters": {"max_new_tokens": new_tokens}}
        return flood.ask("/generate_stream", body, new_tokens, self._key)


def flooding(plan: Plan) -> Requests:
    if plan.long_prompts:
        return Requests(plan.model, "flood", (1, 16), LONG_PROMPT_TOKENS, seed=1)
    return Requests(plan.model, "flood", (48, 144), PROMPT_TOKENS, seed=1)


def steady(model: str, seed: int) -> Requests:
    return Requests(model, "steady", (16, 48), PROMPT_TOKENS, seed)


def start(plan: Plan, stack: ExitStack) -> int:
    """The port of a server that is ready and knows both tenants."""
    folder, port = models.path(plan.model), processes.free_port()
    keys = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys.toml"
    keys.write_text("".join(f"[[tenant]]\nname = '{name}'\nkey = '{key}'\n" for name, key in KEYS.items()))
    keys.chmod(0o600)
    command = [str(serving.SCRIPTS / "millrace-launcher"), "--model-id", str(folder), "--port", str(port)]
    command += ["--hostname", "127.0.0.1", "--dtype", models.dtype_of(folder), "--max-batch-size", str(plan.rows)]
    command += ["--api-key-file", str(keys)]
    environment = {"MILLRACE_ROUTER": plan.router} if plan.router else {}
    process = stack.enter_context(processes.started(processes.Program("tenants", command, environment)))
    processes.wait_healthy(port, process)
    return port


def flood_it(port: int, plan: Plan, rate: float, seconds: float, answers: Connection) -> None:
    """The flood's process: its answers come back through the pipe."""
    flood.yield_to_server()
    answers.send(flood.arriving(port, flooding(plan), rate, seconds, lambda: None))


def one_round(plan: Plan, port: int, rate: float, seed: int) -> Round:
    alone = flood.arriving(port, steady(plan.model, seed), plan.steady, plan.seconds, lambda: None)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    # It is there before the steady tenant comes, and still there when that has gone.
    seconds = plan.seconds + 2 * WARM_SECONDS
    process = multiprocessing.Process(target=flood_it, args=(port, plan, rate, seconds, theirs))
    process.start()
    theirs.close()
    warm = flood.arriving(port, steady(plan.model, seed + 1), plan.steady, WARM_SECONDS, lambda: None)
    beside = flood.arriving(port, steady(plan.model, seed + 2), plan.steady, plan.seconds, lambda: None)
    answers = ours.recv()
    process.join()
    return Round(alone, beside + [one for one in warm if one.status != 200], answers)


def measure(plan: Plan) -> list[Figure]:
    with ExitStack() as stack:
        port = start(plan, stack)
        make = flooding(plan)
        flood.in_turn(port, make, plan.rows, WARM_SECONDS)
        full = flood.in_turn(port, make, 2 * plan.rows, 2 * WARM_SECONDS)
        capacity = len(full) / (max(one.ended for one in full) - min(one.sent for one in full))
        rounds = [one_round(plan, port, plan.factor * capacity, 10 * index) for index in range(plan.rounds)]
        preemptions = metric(port, "millrace_preemptions_total")
    return figures(rounds, capacity, preemptions)


def figures(rounds: list[Round], capacity: float, preemptions: float) -> list[Figure]:
    alone = [one for round in rounds for one in round.alone]
    beside = [one for round in rounds for one in round.beside]
    crowd = [one for round in rounds for one in round.flood]
    lost = sum(not one.is_whole for one in alone + beside)
    served = sum(one.is_whole for one in crowd)
    refused = [one for one in crowd if one.status == 429]
    return [
        Figure("the flood could have had, alone", f"{capacity:.1f} requests/s"),
        Figure("the flood sent / got / was refused", f"{len(crowd)} / {served} / {len(refused)}", served > 0),
        Figure("the flood's refusals have Retry-After", f"{sum(one.retry_after.isdigit() for one in refused)}"),
        Figure("the steady tenant sent, alone / beside", f"{len(alone)} / {len(beside)}"),
        Figure("its requests refused or cut", f"{lost}", lost == 0),
        compared("its latency", alone, beside, lambda one: one.ended - one.sent),
        compared("its time until the first token", alone, beside, lambda one: one.first - one.sent, None),
        Figure("sequences preempted", f"{preemptions:.0f}"),
    ]


def compared(
    name: str, alone: list[Answer], beside: list[Answer], of: Callable[[Answer], float], most: float | None = 1.5
) -> Figure:
    both = [[of(one) for one in answers if one.is_whole] for answers in (alone, beside)]
    halves, ends = ([quantile(values, share) for values in both] for share in (0.5, 0.99))
    ratio = ends[1] / ends[0]
    value = f"{halves[0]:.3f} / {ends[0]:.3f} s alone, {halves[1]:.3f} / {ends[1]:.3f} s beside: p99 x {ratio:.2f}"
    return Figure(f"{name}, p50 / p99", value, None if most is None else ratio <= most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mid", choices=list(models.SHAPES))
    parser.add_argument("--rows", type=int, default=4, help="sequences that the server computes at once (4)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement (60)")
    parser.add_argument("--rounds", type=int, default=2, help="alone and beside the flood, in turns (2)")
    parser.add_argument("--steady", type=float, default=0.7, help="requests per second of the steady tenant (0.7)")
    parser.add_argument("--factor", type=float, default=5.0, help="the flood, over what the server can do (5)")
    parser.add_argument("--long-prompts", action="store_true", help="the flood's prompts are long, its outputs short")
    parser.add_argument("--router", default="", help="another router program than the installed one")
    plan = Plan(**vars(parser.parse_args()))
    description = machine.describe()
    lines = table(measured := measure(plan))
    print(*lines, sep="\n")
    title = f"# A flood beside a steady tenant, {datetime.date.today().isoformat()}\n"
    kind = "a flood of long prompts, " if plan.long_prompts else ""
    how = f"`{plan.model}`, {kind} {plan.rows} rows, {plan.rounds} x {plan.seconds:.0f} s. Machine: {description}\n"
    serving.keep("tenants-long-prompts" if plan.long_prompts else "tenants", [title, how, *lines])
    sys.exit(0 if all(figure.is_good is not False for figure in measured) else 1)


if __name__ == "__main__":
    main()
