"""Where the time of a decoding step goes: kernels, the worker's Python, and what lies between worker and client.

`make bench-step`, or `python -m benchmarks.step_profile [--models tiny mid] [--rows 16] [--steps 200]`. First a
worker's engine by itself, in this process: each kernel's calls are timed, the rest of a step is Python (and torch,
where it is still called). Then a server of the same model with as many streams of as many tokens: what a step takes
there, its own timings, and the processor time of the router and of the worker's other threads, which read plans and
send results meanwhile. Greedy. Of the engine by itself medians, of the server means, which is all that it counts.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import millrace_kernels
import torch
from millrace_worker import cpu_kernels, placement
from millrace_worker.config import WorkerConfig
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.models.choice import ModelAsk, choose, load
from millrace_worker.proto import worker_pb2
from millrace_worker.rank import Identity, Rank
from millrace_worker.sampling import Watermark
from millrace_worker.vectors import avoid_slow_vectors

from benchmarks import load as clients
from benchmarks import machine, models, overload, processes, report, serving
from benchmarks.worker_host_work import CONTEXT, decode_plan, shape_for

if TYPE_CHECKING:
    from collections.abc import Callable

KERNELS = [
    (millrace_kernels.Linear, ["apply", "lookup"]),
    (millrace_kernels.QuantizedLinear, ["apply"]),
    (millrace_kernels.Experts, ["apply"]),
    (millrace_kernels.Norm, ["add_norm"]),
    (millrace_kernels.Attention, ["plan", "attend"]),
    (millrace_kernels.Chain, ["run"]),
    (millrace_kernels.Sampler, ["sample"]),
]


@dataclass(frozen=True)
class Alone:
    """Microseconds of a step in the worker: inputs, forward pass and the rest, what kernels take of the two, and the
    plan read from bytes and the result made into bytes."""

    inputs: float
    forward: float
    sample: float
    total: float
    bytes: float
    kernels: dict[str, float]


@dataclass(frozen=True)
class Served:
    """Microseconds of a step as clients see it, what the worker says of its forward pass and of the rest, and
    processor time beside the threads that compute."""

    period: float
    forward: float
    sample: float
    router: float
    other_threads: float


class Timed:
    """Counts what the methods of the kernels take, for as long as it is entered."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Timed:
        for kind, names in KERNELS:
            for name in names:
                self._kept.append((kind, name, getattr(kind, name)))
                setattr(kind, name, self._timed(f"{kind.__name__}.{name}", getattr(kind, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for kind, name, was in self._kept:
            setattr(kind, name, was)

    def _timed(self, label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - begun

        return timed


def alone(model: str, num_rows: int, num_steps: int) -> Alone:
    with torch.inference_mode(), Timed() as timed:  # layers keep the methods that they find when they are made
        engine = made(model, num_rows, num_steps)
        timings, spent, whole = [], [], []
        for step in range(1, num_steps + 1):
            timed.seconds = {}
            data = decode_plan(engine.shape, "greedy", step).SerializeToString()
            begun = time.perf_counter()
            result = engine.compute(worker_pb2.StepPlan.FromString(data))
            result.SerializeToString()
            whole.append((time.perf_counter() - begun) * 1e6)
            timings.append(result.timings)
            spent.append(timed.seconds)
    settled = slice(num_steps // 10, None)
    middle = {name: statistics.median(one.get(name, 0.0) for one in spent[settled]) * 1e6 for name in spent[-1]}
    columns = zip(*((t.inputs_us, t.forward_us, t.sample_us, t.total_us) for t in timings[settled]), strict=True)
    inputs, forward, sample, total = (statistics.median(column) for column in columns)
    return Alone(inputs, forward, sample, total, statistics.median(whole[settled]) - total, middle)


def made(model: str, num_rows: int, num_steps: int) -> Engine:
    """An engine as a worker has it, with as many rows and room for as many steps."""
    folder = models.path(model)
    kernels, group = cpu_kernels.find("", torch.get_num_threads()), Group()
    dtype = models.torch_dtype_of(folder)
    ask = ModelAsk(folder=folder, dtype=dtype, device=torch.device("cpu"), group=group, kernels=kernels)
    loaded = load(ask, choose(folder, "native"))
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
    command = [str(serving.SCRIPTS / "millrace-launcher"), "--model-id", str(folder), "--port", str(port)]
    command += ["--hostname", "127.0.0.1", "--dtype", models.dtype_of(folder), "--max-batch-size", str(num_rows)]
    with ExitStack() as stack:
        process = stack.enter_context(processes.started(processes.Program("step-profile", command, {})))
        processes.wait_healthy(port, process)
        ask(port, folder, num_rows, 32, seed=0)
        whole = ask(port, folder, num_rows, new_tokens, seed=1)
        period = (whole.seconds - max(whole.first_token_seconds)) / (new_tokens - 1)
        # Processor time of the middle of a batch, when all rows decode.
        batch = Thread(target=ask, args=(port, folder, num_rows, new_tokens, 2))
        batch.start()
        time.sleep(max(whole.first_token_seconds) + 0.2 * period * new_tokens)
        before, begun = (spent(process.pid), said(port)), time.perf_counter()
        time.sleep(0.5 * period * new_tokens)
        after, ended = (spent(process.pid), said(port)), time.perf_counter()
        batch.join()
    steps = (ended - begun) / period
    forward, sample, computed = (b - a for a, b in zip(before[1], after[1], strict=True))
    if not computed:
        raise SystemExit(f"no step ended in {ended - begun:.3f} s: give more --steps than {new_tokens}")
    beside = ((b - a) / steps * 1e6 for a, b in zip(before[0], after[0], strict=True))
    return Served(period * 1e6, forward / computed * 1e6, sample / computed * 1e6, *beside)


def said(port: int) -> tuple[float, float, float]:
    """Of all decoding steps until now: seconds of their forward passes and of what follows them, and how many."""
    names = ("forward_duration_sum", "decode_duration_sum", "forward_duration_count")
    forward, sample, count = (overload.metric(port, f'tgi_batch_{name}{{method="decode"}}') for name in names)
    return forward, sample, count


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
        elif b"millrace_worker" in command:
            other += sum(threads) - max(threads)
    return router, other


def is_helper(task: Path) -> bool:
    return (task / "comm").read_text(encoding="utf-8").startswith("kernels-")


def lines_of(model: str, own: Alone, seen: Served) -> list[str]:
    kernels = sum(own.kernels.values())
    sampling = own.kernels.get("Sampler.sample", 0.0)
    longer = seen.forward + seen.sample - own.forward - own.sample
    parts = {
        "kernels: " + ", ".join(f"{name} {value:.0f}" for name, value in sorted(own.kernels.items())): kernels,
        "Python of the forward pass": own.forward - (kernels - sampling),
        "Python of inputs": own.inputs,
        "Python of sampling and answer": own.sample - sampling,
        "plan and result, from bytes and to bytes": own.bytes,
        "the rest of the worker's step": own.total - own.inputs - own.forward - own.sample,
        "forward pass, sampling and answer: longer beside router and clients": longer,
        "between two steps: transport, waiting for a plan": seen.period - own.total - own.bytes - longer,
    }
    rows = [["part of a step", "µs", "share"]]
    rows += [[name, f"{value:.0f}", f"{value / seen.period:.1%}"] for name, value in parts.items()]
    aside = (
        f"\nProcessor time beside the computing threads, of each step: router {seen.router:.0f} µs, the worker's "
        f"reading and sending threads {seen.other_threads:.0f} µs.\n"
    )
    return [f"\n## {model}: {seen.period:.0f} µs a step as clients see it\n", *report.table(rows), aside]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "mid"], choices=list(models.SHAPES))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if avoid_slow_vectors(os.environ):  # numpy is here already: begin again, as a worker begins
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.step_profile", *sys.argv[1:]])
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
