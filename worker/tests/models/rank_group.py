"""Rank processes that stay for many models, so that each model costs its own work and not the start of a process."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from worker.tests.ports import free_port

# Generous: how long a start takes on a machine that others use is not what is tested.
START_SECONDS, JOB_SECONDS = 300.0, 240.0


@dataclass(frozen=True)
class Job:
    """One model, and what it computes; `kernels` to `quantize` are what the worker's settings say."""

    folder: Path
    sequences: list[list[int]]
    prompts: dict[int, int] = field(default_factory=dict)
    kernels: str = ""
    dtype: str = "float32"
    model_impl: str = "native"
    quantize: str | None = None
    seed: int = 5


class RanksError(AssertionError):
    """What went wrong on each rank."""


class RefusedError(RanksError):
    """Every rank refuses the model, with the reason."""


class RankGroup:
    """`size` processes joined over gloo. After a failure they are out of step: the next job starts others."""

    def __init__(self, size: int, scratch: Path) -> None:
        self._size, self._result = size, scratch / f"ranks-{size}.pt"
        self._ranks: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def logits(self, job: Job) -> list[Tensor]:
        """Of each position of each sequence, from rank 0. Raises RanksError with what the ranks say."""
        seconds = JOB_SECONDS
        if not self._ranks:
            self._ranks, seconds = self._start(), START_SECONDS
        line = json.dumps({**job.__dict__, "folder": str(job.folder), "result": str(self._result)}) + "\n"
        for rank in self._ranks:
            assert rank.stdin
            rank.stdin.write(line.encode())
            rank.stdin.flush()
        answers = [_answer(rank, seconds) for rank in self._ranks]
        said = "; ".join(f"rank {i}: {next(iter(answer.values()), 'fine')}" for i, answer in enumerate(answers))
        if all("refused" in answer for answer in answers):
            raise RefusedError(said)
        if any(answers):
            self.close()
            raise RanksError(said)
        return torch.load(self._result)

    def close(self) -> None:
        for rank in self._ranks:
            rank.kill()
        for rank in self._ranks:
            rank.communicate()
        self._ranks = []

    def _start(self) -> list[subprocess.Popen[bytes]]:
        common = os.environ | {
            "WORLD_SIZE": str(self._size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(Path(__file__).with_name("ranks.py"))]
        pipe = subprocess.PIPE
        return [
            subprocess.Popen(command, env=common | {"RANK": str(rank)}, stdin=pipe, stdout=pipe)
            for rank in range(self._size)
        ]


def _answer(rank: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """One line of JSON; a rank waits for another that failed, so that one of them may well say nothing."""
    assert rank.stdout
    ready, _, _ = select.select([rank.stdout], [], [], seconds)
    line = rank.stdout.readline() if ready else b""
    return json.loads(line) if line else {"error": f"no answer in {seconds:.0f} s" if not ready else "has died"}
