"""Sampling alone: a step's rows by torch and by this CPU's kernels, alternating.

python -m benchmarks.sampling [--rows 1 16] [--vocab 4096 131072] [--rounds 20] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from millrace_worker import cpu_kernels
from millrace_worker.proto import worker_pb2
from millrace_worker.sampling import SampleContext, SamplingRows, sample

from benchmarks import processes
from benchmarks.machine import describe

LENGTH = 200
NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
SEEDED = {**NEUTRAL, "do_sample": True, "temperature": 0.7}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": NEUTRAL,
    "greedy, 5 best": {**NEUTRAL, "top_n_tokens": 5},
    "temperature": SEEDED,
    "temperature, top-k, top-p": {**SEEDED, "top_k": 50, "top_p": 0.9},
    "the same, penalties, 5 best": {
        **SEEDED, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": 0.2, "top_n_tokens": 5,
    },
    "temperature, typical-p": {**SEEDED, "typical_p": 0.9},
}  # fmt: skip


def compare(kind: str, rows: int, vocab: int, rounds: int, threads: int) -> tuple[float, float]:
    """Median microseconds of a step by torch and by kernels; scores are peaked as a model's are.

    Of one thread it is the time that it computed: what else runs on the machine does not count.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    sides = [SamplingRows(rows, "cpu", kernels=cpu_kernels.find(choice, threads)) for choice in (cpu_kernels.OFF, "")]
    for row in range(rows):
        for side in sides:
            side.set(row, worker_pb2.Sampling(**{**KINDS[kind], "seed": row}), LENGTH // 2)
    token_ids = torch.randint(vocab, (rows, LENGTH + rounds + 1))
    times: list[list[float]] = [[], []]
    for step in range(rounds):
        scores = torch.randn(rows, vocab) * 2
        scores.scatter_(1, torch.randint(vocab, (rows, 20)), 8 + 4 * torch.rand(rows, 20))
        context = SampleContext(np.arange(rows), np.full(rows, LENGTH + step), token_ids)
        chosen = []
        for side, found in zip(sides, times, strict=True):
            given = scores.clone()
            start = clock()
            chosen.append(sample(given, context, side).token_ids.clone())
            found.append((clock() - start) * 1e6)
        assert torch.equal(*chosen)
    settled = rounds // 5
    by_torch, by_kernels = (statistics.median(each[settled:]) for each in times)
    return by_torch, by_kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 131072])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    processes.begin_as_a_worker("benchmarks.sampling")
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    print(describe(), f"{given.threads} threads, {given.rounds} rounds")
    print("| vocabulary | rows | sampling | torch µs | kernels µs | ratio |\n|---|---|---|---|---|---|")
    for vocab in given.vocab:
        for rows in given.rows:
            for kind in KINDS:
                by_torch, by_kernels = compare(kind, rows, vocab, given.rounds, given.threads)
                print(
                    f"| {vocab} | {rows} | {kind} | {by_torch:.0f} | {by_kernels:.0f} | {by_torch / by_kernels:.1f} |",
                    flush=True,
                )
    print(describe())


if __name__ == "__main__":
    main()
