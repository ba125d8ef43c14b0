"""A decode step of many streams on the same Llama: the Transformers backend against the native decoder, in turns.

`python -m benchmarks.backend --shape mid --rows 16 --threads 2`
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
import torch
from millrace_worker import cpu_kernels
from millrace_worker.distributed import Group
from millrace_worker.model import Model, paged
from millrace_worker.models.choice import NATIVE, TRANSFORMERS, ModelAsk, choose, load
from millrace_worker.step import Batch

from benchmarks import models, processes

CONTEXT, STEPS, WARM = 200, 60, 5
PAGES = 20  # of a row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(models.SHAPES), default="mid")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    processes.begin_as_a_worker("benchmarks.backend")
    torch.set_num_threads(arguments.threads)
    loaded = {name: load_model(arguments.shape, name, arguments.threads) for name in (NATIVE, TRANSFORMERS)}
    times: dict[str, list[float]] = {name: [] for name in loaded}
    for index in range(WARM + STEPS):
        for name, model in loaded.items():
            started = time.perf_counter()
            step(model, arguments.rows, CONTEXT + index)
            if index >= WARM:
                times[name].append(time.perf_counter() - started)
    native, hosted = (statistics.median(times[name]) for name in (NATIVE, TRANSFORMERS))
    fastest = min(times[NATIVE]) / min(times[TRANSFORMERS])
    print("| shape | rows | threads | native ms | transformers ms | ratio of speed (median) | (fastest) |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {arguments.shape} | {arguments.rows} | {arguments.threads} | {native * 1e3:.2f} | {hosted * 1e3:.2f} "
        f"| {native / hosted:.2f} | {fastest:.2f} |"
    )


def load_model(shape: str, implementation: str, threads: int) -> Model:
    folder = models.path(shape)
    ask = ModelAsk(
        folder=folder,
        dtype=getattr(torch, models.dtype_of(folder)),
        device=torch.device("cpu"),
        group=Group(),
        kernels=cpu_kernels.find("", threads),
    )
    model = load(ask, choose(folder, implementation))
    paged(model).allocate_kv(PAGES * 64)
    return model


@torch.inference_mode()
def step(model: Model, rows: int, start: int) -> None:
    """One token for each row, whose earlier tokens need not be real."""
    table = np.arange(rows * PAGES, dtype=np.int32).reshape(rows, PAGES)
    batch = Batch(
        rows=np.arange(rows),
        starts=np.full(rows, start),
        counts=np.ones(rows, dtype=np.int64),
        page_table=torch.from_numpy(table),
        page_table_host=table,
    )
    ids, positions = torch.arange(rows) + 5, torch.full((rows,), start)
    model.logits(model.hidden(ids, positions, model.plan(batch)))


if __name__ == "__main__":
    main()
