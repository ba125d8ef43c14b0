"""Host work of a worker per step, everything but the model: plan to bytes, rows, inputs, sampling, answer.

    python -m benchmarks.worker_host_work [--vocab 8192] [--steps 300]

The model is a stand-in that returns the same scores every time. Figures are medians over the steps, one thread.
Then the stream: greedy steps whose forward pass takes a stated time without the interpreter's lock, as kernels
do, through a socket with two plans in flight. What a step takes beyond its own work is waiting and sending.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import torch
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.proto import worker_pb2, worker_pb2_grpc
from millrace_worker.pulse import Pulse
from millrace_worker.rows import RowsShape
from millrace_worker.sampling import Watermark
from millrace_worker.server import WorkerServer, WorkerService
from millrace_worker.step import Batch
from millrace_worker.worst_case import all_features

from benchmarks import processes

PAGE_SIZE = 16
CONTEXT = 192
FORWARD_SECONDS = (0.001, 0.005)


class NullModel:
    """Has a model's face and does none of its work; `hidden` takes as long as it is told, without the lock."""

    def __init__(self, vocab_size: int, max_rows: int, seconds: float = 0.0) -> None:
        self.vocab_size = vocab_size
        self._seconds = seconds
        self._hidden = torch.zeros(max_rows, 1)
        self._logits = torch.randn(max_rows, vocab_size)

    def plan(self, batch: Batch) -> Batch:
        return batch

    def hidden(self, token_ids: torch.Tensor, *_: object) -> torch.Tensor:
        if self._seconds:
            time.sleep(self._seconds)
        return self._hidden[: len(token_ids)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits[: len(hidden)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--client", metavar="SOCKET", help="drive a stream there and print its figures")
    parser.add_argument("--rows", type=int, default=16, help="of the stream that --client drives")
    arguments = parser.parse_args()
    processes.begin_as_a_worker("benchmarks.worker_host_work")
    torch.set_num_threads(1)
    if arguments.client:
        print(*drive(arguments.client, shape_for(arguments.rows, arguments.vocab, arguments.steps), arguments.steps))
        return
    print("| rows | sampling | decode + inputs µs | forward µs (no model) | sample + answer µs | whole step µs |")
    print("|---|---|---|---|---|---|")
    for num_rows in (1, 16, 256):
        for name in ("greedy", "seeded, top-k, top-p", "every feature"):
            measured = measure(num_rows, name, arguments.vocab, arguments.steps)
            print(f"| {num_rows} | {name} | " + " | ".join(f"{value:.0f}" for value in measured) + " |")
    print("\n| rows | forward ms | a step µs | its own work µs | waiting and sending µs |")
    print("|---|---|---|---|---|")
    for num_rows in (1, 16):
        for seconds in FORWARD_SECONDS:
            step, own = stream(shape_for(num_rows, arguments.vocab, arguments.steps), seconds, arguments.steps)
            print(f"| {num_rows} | {seconds * 1000:g} | {step:.0f} | {own:.0f} | {step - own:.0f} |")


def measure(num_rows: int, sampling: str, vocab_size: int, num_steps: int) -> list[float]:
    """Medians of the timings' parts and of the whole step as its caller sees it."""
    shape = shape_for(num_rows, vocab_size, num_steps)
    engine = make_engine(shape, NullModel(vocab_size, num_rows))
    parts: list[tuple[float, float, float, float]] = []
    for step in range(1, num_steps + 1):
        data = decode_plan(shape, sampling, step).SerializeToString()
        started = time.perf_counter()
        result = engine.compute(worker_pb2.StepPlan.FromString(data))
        result.SerializeToString()
        whole = (time.perf_counter() - started) * 1e6
        assert not result.failed, result.failed[0].message
        parts.append((result.timings.inputs_us, result.timings.forward_us, result.timings.sample_us, whole))
    settled = parts[len(parts) // 10 :]
    return [statistics.median(column) for column in zip(*settled, strict=True)]


def shape_for(num_rows: int, vocab_size: int, num_steps: int) -> RowsShape:
    return RowsShape(
        max_rows=num_rows,
        max_sequence_tokens=CONTEXT + num_steps + 1,
        page_size=PAGE_SIZE,
        num_pages=num_rows * (-(-(CONTEXT + num_steps + 1) // PAGE_SIZE)),
        vocab_size=vocab_size,
        max_step_tokens=max(num_rows, CONTEXT),
        max_top_n_tokens=5,
    )


def make_engine(shape: RowsShape, model: Any) -> Engine:
    parts = EngineParts(model=model, group=Group(), device=torch.device("cpu"), watermark=Watermark())
    return Engine(parts, shape)


def stream(shape: RowsShape, seconds: float, num_steps: int) -> tuple[float, float]:
    """Microseconds of a greedy step through a socket, and of its own work; the client is a process of its own."""
    engine = make_engine(shape, NullModel(shape.vocab_size, shape.max_rows, seconds))
    loading: Future[Any] = Future()
    loading.set_result(SimpleNamespace(engine=engine))
    with tempfile.TemporaryDirectory() as folder:
        server = WorkerServer(WorkerService(loading, threads=1, die=sys.exit, pulse=Pulse()), Path(folder) / "socket")
        given = ["--client", f"{folder}/socket", "--rows", str(shape.max_rows), "--steps", str(num_steps)]
        command = [sys.executable, "-m", "benchmarks.worker_host_work", "--vocab", str(shape.vocab_size), *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
        server.stop(1.0)
    step, own = done.stdout.split()
    return float(step), float(own)


def drive(socket: str, shape: RowsShape, num_steps: int) -> tuple[float, float]:
    """The client: it sends each plan before the result of the one before it is back."""
    sent: queue.SimpleQueue[worker_pb2.StepPlan | None] = queue.SimpleQueue()
    sent.put(decode_plan(shape, "greedy", 1))
    times, own = [], []
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        results = worker_pb2_grpc.WorkerStub(channel).Run(iter(sent.get, None))
        for step in range(2, num_steps + 1):
            sent.put(decode_plan(shape, "greedy", step))
            own.append(next(results).timings.total_us)
            times.append(time.perf_counter())
        sent.put(None)
        next(results)
    settled = len(times) // 10
    return statistics.median(np.diff(times[settled:])) * 1e6, statistics.median(own[settled:])


def decode_plan(shape: RowsShape, sampling: str, step: int) -> worker_pb2.StepPlan:
    """All rows decode one token; the first step admits them, and every sixteenth grows each by a page."""
    plan = worker_pb2.StepPlan(step=step)
    rows = np.arange(shape.max_rows)
    if step == 1:
        plan.admitted.extend(admission(shape, sampling, row) for row in rows.tolist())
    position = CONTEXT + step - 1
    if position % PAGE_SIZE == 0:
        plan.grown.rows = u32(rows)
        plan.grown.indices = u32(np.full_like(rows, position // PAGE_SIZE))
        plan.grown.pages = u32(rows * shape.max_pages + position // PAGE_SIZE)
    plan.work.rows = u32(rows)
    plan.work.starts = u32(np.full_like(rows, position))
    plan.work.counts = u32(np.ones_like(rows))
    plan.work.samples = bytes([1]) * len(rows)
    return plan


def admission(shape: RowsShape, sampling: str, row: int) -> worker_pb2.Admission:
    features = {
        "greedy": worker_pb2.Sampling(temperature=1, top_p=1, typical_p=1, repetition_penalty=1),
        "seeded, top-k, top-p": worker_pb2.Sampling(
            do_sample=True, seed=row, temperature=0.7, top_k=50, top_p=0.9, typical_p=1, repetition_penalty=1
        ),
        "every feature": all_features(shape),
    }
    num_pages = -(-(CONTEXT + 1) // PAGE_SIZE)
    return worker_pb2.Admission(
        sequence=row + 1,
        row=row,
        token_ids=u32(np.arange(CONTEXT + 1) % shape.vocab_size),
        num_prompt_tokens=CONTEXT + 1,
        pages=u32(row * shape.max_pages + np.arange(num_pages)),
        sampling=features[sampling],
    )


def u32(values: np.ndarray) -> bytes:
    return values.astype("<u4").tobytes()


if __name__ == "__main__":
    main()
