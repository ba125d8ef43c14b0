"""One rank of a test, with RANK and WORLD_SIZE set: a job per line of its standard input (`rank_group.Job`), an answer
per line of its standard output. An error ends it, but for a refusal: the ranks would be out of step."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from millrace_worker import cpu_kernels, shared_memory
from millrace_worker.distributed import Group, connect
from millrace_worker.layers import operators
from millrace_worker.models.changes import Changes
from millrace_worker.models.choice import ModelAsk, choose, load
from millrace_worker.models.hf_config import ConfigError
from millrace_worker.models.sharding import ShardingError
from millrace_worker.shared_memory import SharedMemoryGroup
from paged import run as run_steps  # pyright: ignore[reportMissingImports]

# By the name that transformers calls it.
INIT_MESH = "init_device_mesh"
TIED_COPIES = operators.MAX_TIED_COPY_BYTES


def run(job: dict[str, Any], plain: Group, shared: SharedMemoryGroup) -> None:
    # With kernels, rows of tied tables are read back from the part that each rank has packed.
    operators.MAX_TIED_COPY_BYTES = TIED_COPIES if job["kernels"] == cpu_kernels.OFF else 0
    machine = cpu_kernels.find(job["kernels"], 1)
    group = plain if machine is None else shared
    dtype = getattr(torch, job["dtype"])
    folder = Path(job["folder"])
    changes = Changes(quantize=job["quantize"])
    cpu = torch.device("cpu")
    ask = ModelAsk(folder=folder, dtype=dtype, device=cpu, group=group, kernels=machine, changes=changes)
    model = load(ask, choose(folder, job["model_impl"], changes))
    prompts = {int(index): length for index, length in job["prompts"].items()}
    found = run_steps(model, seed=job["seed"]).logits(job["sequences"], prompts)
    if plain.rank == 0:
        torch.save(found, job["result"])
    else:
        assert all(logits.numel() == 0 for logits in found)


def share_meshes() -> None:
    """Each model that transformers divides asks for groups of its own, whose threads look for news again and again:
    after some dozens of models they would take more than what is tested. Nor can groups be taken down again and again:
    a process has died in that, of a damaged heap."""
    setattr(dist, INIT_MESH, functools.cache(getattr(dist, INIT_MESH)))


def main(answers: TextIO) -> None:
    torch.set_num_threads(1)
    share_meshes()
    plain = connect(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu"))
    shared = shared_memory.join(plain)
    assert isinstance(shared, SharedMemoryGroup)
    for each in (plain, shared):
        ids = torch.arange(3) if plain.rank == 0 else torch.zeros(3, dtype=torch.int64)
        assert each.broadcast(ids).tolist() == [0, 1, 2]
    for line in sys.stdin:
        try:
            run(json.loads(line), plain, shared)
        except (ConfigError, ShardingError) as error:  # of every rank, before any of them waits for another
            print(json.dumps({"refused": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
            continue
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
            raise
        print("{}", file=answers, flush=True)


if __name__ == "__main__":
    # What libraries print must not lie between the answers.
    answering = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(answering)
