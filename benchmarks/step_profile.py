"""Where the time of a decoding step goes: kernels, the worker's Python, bytes, transport and router.

`make bench-step`, or `python -m benchmarks.step_profile [--models tiny mid] [--rows 16] [--steps 200]`. A server of the
model with as many streams of as many tokens, whose worker writes down what the parts of its steps take
(`benchmarks.timed_server`): each moment between two results belongs to one part. Beside each part what it takes in a
worker by itself, which has the processors to itself, and plans that are always there. Greedy; means of the middle
steps. Processor time of the router and of the worker's other threads, which read plans and send results meanwhile,
stands apart: it passes beside the step, and counts in it where it takes a processor from the kernels.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import torch
from millrace_worker import cpu_kernels, placement
from millrace_worker.config import WorkerConfig
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.models.changes import Changes
from millrace_worker.models.choice import ModelAsk, choose, load
from millrace_worker.proto import worker_pb2
from millrace_worker.pulse import Pulse
from millrace_worker.rank import Identity, Rank
from millrace_worker.sampling import Watermark

from benchmarks import load as clients
from benchmarks import machine, models, processes, report, serving, step_parts, timed_server
from benchmarks.worker_host_work import CONTEXT, decode_plan, shape_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from millrace_worker.rows import RowsShape

    from benchmarks.step_parts import Parts


LEAST_STEPS = 2 * step_parts.STEPS_AT_ONCE


@dataclass(frozen=True)
class Served:
    """Microseconds of a step: its parts, and processor time beside the threads that compute."""

    parts: Parts
    router: float
    other_threads: float


class AllPlans:
    """Decoding plans of a stream, all there from the beginning."""

    def __init__(self, shape: RowsShape, num_steps: int) -> None:
        steps = range(1, num_steps + 1)
        self._plans = iter([decode_plan(shape, "greedy", step).SerializeToString() for step in steps])
        self.answers: list[bytes] = []

    def receive(self) -> bytes | None:
        return next(self._plans, None)

    def send(self, answer: bytes, /) -> None:
        self.answers.append(answer)

    def on_end(self, call: Callable[[], None] | None, /) -> None:
        pass


def alone(model: str, num_rows: int, num_steps: int) -> Parts:
    steps: list[Parts] = []
    recorder = step_parts.Recorder(steps.extend)
    with recorder.watching():
        engine = made(model, num_rows, num_steps)
        plans = AllPlans(engine.shape, num_steps)
        step_parts.watched(recorder, engine, plans, sys.exit, Pulse()).compute()
    failed = [failure for answer in plans.answers for failure in worker_pb2.StepResult.FromString(answer).failed]
    assert not failed, failed[0].message
    return step_parts.means(step_parts.settled(steps, num_rows))


@torch.inference_mode()
def made(model: str, num_rows: int, num_steps: int) -> Engine:
    """An engine as a worker has it, with as many rows and room for as many steps."""
    folder = models.path(model)
    kernels, group = cpu_kernels.find("", torch.get_num_threads()), Group()
    dtype = models.torch_dtype_of(folder)
    changes = Changes(quantize="eetq" if models.form_of(folder) == "int8" else None)
    cpu = torch.device("cpu")
    ask = ModelAsk(folder=folder, dtype=dtype, device=cpu, group=group, kernels=kernels, changes=changes)
    loaded = load(ask, choose(folder, "native", changes))
    parts = EngineParts(model=loaded, group=group, device=ask.device, watermark=Watermark(), kernels=kernels)
    shape = shape_for(num_rows, loaded.vocab_size, num_steps)
    config = WorkerConfig(model_path=folder, uds_path="unused", place=placement.Place(torch.get_num_threads()))
    rank = Rank(config, parts, Identity("LlamaForCausalLM", dtype, "cpu", weight_bytes=1))
    rank.prepare(
        worker_pb2.PrepareRequest(
            max_rows=shape.max_rows,
            max_step_tokens=shape.max_step_tokens,
            max_sequence_tokens=shape.max_sequence_tokens,
            max_top_n_tokens=shape.max_top_n_tokens,
            max_pool_tokens=shape.num_pages * shape.page_size,
        )
    )
    return rank.engine


def served(model: str, num_rows: int, new_tokens: int) -> Served:
    folder, port = models.path(model), processes.free_port()
    with ExitStack() as stack:
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "steps"
        command = [sys.executable, "-m", "benchmarks.timed_server", str(kept), "--model-id", str(folder)]
        command += ["--port", str(port), "--hostname", "127.0.0.1", "--dtype", models.dtype_of(folder)]
        command += ["--max-batch-size", str(num_rows)]
        process = stack.enter_context(processes.started(processes.Program("step-profile", command, {})))
        processes.wait_healthy(port, process)
        first = ask(port, folder, num_rows, new_tokens, seed=1)
        before = len(step_parts.read(kept))
        begin = max(first.first_token_seconds)
        batch = Thread(target=ask, args=(port, folder, num_rows, new_tokens, 2))
        batch.start()
        # Processor time of the middle of the batch, when all rows decode.
        time.sleep(begin + 0.2 * (first.seconds - begin))
        used, begun = spent(process.pid), time.perf_counter()
        time.sleep(0.5 * (first.seconds - begin))
        used_then, ended = spent(process.pid), time.perf_counter()
        batch.join()
        steps = step_parts.settled(step_parts.read(kept)[before:], num_rows)
    if not steps:
        raise SystemExit(f"no step of {num_rows} rows was written down: give more --steps than {new_tokens}")
    parts = step_parts.means(steps)
    in_window = (ended - begun) / sum(parts.values()) * 1e6
    router, others = ((b - a) / in_window * 1e6 for a, b in zip(used, used_then, strict=True))
    return Served(parts, router, others)


def ask(port: int, folder: Path, num_rows: int, new_tokens: int, seed: int) -> clients.Measured:
    bodies = [clients.completion(text, "tgi", new_tokens) for text in models.prompts(folder, num_rows, CONTEXT, seed)]
    return clients.measure(port, "/v1/completions", bodies)


def spent(launcher: int) -> tuple[float, float]:
    """Processor seconds of the router, and of the worker without the threads that compute: the kernels' helpers, and
    the one that calls them, the busiest of all."""
    router = other = 0.0
    for pid in processes.family(launcher):
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        threads = [processes.processor_seconds(task / "stat") for task in tasks if not is_helper(task)]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"millrace-router" in command:
            router += sum(threads)
        elif timed_server.WORKER.encode() in command:
            other += sum(threads) - max(threads)
    return router, other


def is_helper(task: Path) -> bool:
    return (task / "comm").read_text(encoding="utf-8").startswith("kernels-")


def lines_of(model: str, own: Parts, seen: Served) -> list[str]:
    period = sum(seen.parts.values())
    rows = [["part of a step", "µs", "share", "µs by itself"]]
    kernels = {name for name in own | seen.parts if name.startswith(step_parts.KERNEL)}
    groups = {"kernels": kernels} | {name: {name} for name in seen.parts if name not in kernels}
    groups["all"] = set(seen.parts)
    for label, names in groups.items():
        took, by_itself = (sum(parts.get(name, 0.0) for name in names) for parts in (seen.parts, own))
        rows.append([label, f"{took:.0f}", f"{took / period:.1%}", f"{by_itself:.0f}"])
    each = ", ".join(
        f"{name.removeprefix(step_parts.KERNEL)} {seen.parts.get(name, 0.0):.0f} ({own.get(name, 0.0):.0f})"
        for name in sorted(kernels)
    )
    aside = (
        f"\nKernels, µs (by itself): {each}. Processor time beside the computing threads, of each step: router "
        f"{seen.router:.0f} µs, the worker's reading and sending threads {seen.other_threads:.0f} µs.\n"
    )
    return [f"\n## {model}: {period:.0f} µs a step\n", *report.table(rows), aside]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "mid"], choices=list(models.SHAPES))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if options.steps < LEAST_STEPS:
        parser.error(
            f"--steps {options.steps}: they are written down by the {LEAST_STEPS // 2}, give {LEAST_STEPS} or more"
        )
    processes.begin_as_a_worker("benchmarks.step_profile")
    torch.set_num_threads(placement.choose(placement.look(os.environ), 0, 1).threads)
    description = machine.describe()
    lines = [
        f"# A step of {options.rows} rows, {datetime.date.today().isoformat()}\n",
        f'`make bench-step ARGS="{" ".join(sys.argv[1:])}"`. Machine: {description}\n',
    ]
    for model in options.models:
        own = alone(model, options.rows, options.steps)
        lines += lines_of(model, own, served(model, options.rows, options.steps))
    print(*lines, sep="\n")
    serving.keep("step-profile", lines)


if __name__ == "__main__":
    main()
