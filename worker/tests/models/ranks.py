"""One rank of a test: `python ranks.py JOB` with RANK and WORLD_SIZE set; JOB is a JSON file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from millrace_worker import cpu_kernels, shared_memory
from millrace_worker.distributed import connect
from millrace_worker.layers import operators
from millrace_worker.models.load import load_model
from millrace_worker.shared_memory import SharedMemoryGroup
from paged import PagedRun  # pyright: ignore[reportMissingImports]


def main(job_path: Path) -> None:
    torch.set_num_threads(1)
    job = json.loads(job_path.read_text())
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    group = connect(rank, size, device)
    results, copies = [], operators.MAX_TIED_COPY_BYTES
    shared = shared_memory.join(group)
    assert isinstance(shared, SharedMemoryGroup)
    for folder, dtype, kernels in job["models"]:
        # With kernels, rows of tied tables are read back from the part that each rank has packed.
        operators.MAX_TIED_COPY_BYTES = copies if kernels == cpu_kernels.OFF else 0
        machine = cpu_kernels.find(kernels, 1)
        each = group if machine is None else shared
        model = load_model(Path(folder), dtype=getattr(torch, dtype), device=device, group=each, kernels=machine)
        results.append(PagedRun(model, seed=job["seed"]).logits(job["sequences"]))
    for each in (group, shared):
        ids = torch.arange(3) if rank == 0 else torch.zeros(3, dtype=torch.int64)
        assert each.broadcast(ids).tolist() == [0, 1, 2]
    if rank == 0:
        torch.save(results, job_path.with_suffix(".pt"))
    else:
        assert all(logits.numel() == 0 for each in results for logits in each)
    group.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
