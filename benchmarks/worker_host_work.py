"""Host work of a worker per step, everything but the model: plan to bytes, rows, inputs, sampling, answer.

    python -m benchmarks.worker_host_work [--vocab 8192] [--steps 300]

The model is a stand-in that returns the same scores every time. Figures are medians over the steps, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from types import SimpleNamespace

import numpy as np
import torch
from millrace_worker.distributed import Group
from millrace_worker.engine import Engine, EngineParts
from millrace_worker.proto import worker_pb2
from millrace_worker.rows import RowsShape
from millrace_worker.sampling import Watermark
from millrace_worker.worst_case import all_features

PAGE_SIZE = 16
CONTEXT = 192


class NullModel:
    """Has a model's face and does none of its work."""

    def __init__(self, vocab_size: int, max_rows: int) -> None:
        self.vocab_size = vocab_size
        self.backend = SimpleNamespace(page_size=PAGE_SIZE, plan=lambda batch: batch)
        self._hidden = torch.zeros(max_rows, 1)
        self._logits = torch.randn(max_rows, vocab_size)

    def hidden(self, token_ids: torch.Tensor, *_: object) -> torch.Tensor:
        return self._hidden[: len(token_ids)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits[: len(hidden)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| rows | sampling | decode + inputs µs | forward µs (no model) | sample + answer µs | whole step µs |")
    print("|---|---|---|---|---|---|")
    for num_rows in (1, 16, 256):
        for name in ("greedy", "seeded, top-k, top-p", "every feature"):
            measured = measure(num_rows, name, arguments.vocab, arguments.steps)
            print(f"| {num_rows} | {name} | " + " | ".join(f"{value:.0f}" for value in measured) + " |")


def measure(num_rows: int, sampling: str, vocab_size: int, num_steps: int) -> list[float]:
    """Medians of the timings' parts and of the whole step as its caller sees it."""
    shape = RowsShape(
        max_rows=num_rows,
        max_sequence_tokens=CONTEXT + num_steps + 1,
        page_size=PAGE_SIZE,
        num_pages=num_rows * (-(-(CONTEXT + num_steps + 1) // PAGE_SIZE)),
        vocab_size=vocab_size,
        max_step_tokens=max(num_rows, CONTEXT),
        max_top_n_tokens=5,
    )
    model = NullModel(vocab_size, num_rows)
    engine = Engine(EngineParts(model=model, group=Group(), device=torch.device("cpu"), watermark=Watermark()), shape)  # pyright: ignore[reportArgumentType]
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
