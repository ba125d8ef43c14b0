"""A decoding step of one row against the machine's limit: a plain read of memory, the two in turn.

`make bench-roofline`, or `python -m benchmarks.roofline [--models 1b 1b-int8 1b-int4] [--rounds 12]`. A worker's engine
by itself computes a few steps, then all cores read 1 GiB a few times, and so on: where others share the machine, what
its memory gives changes within seconds, and only neighbours can be compared. A step reads every weight but the input
embedding once.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import sys
import time

import torch
from millrace_worker import placement
from millrace_worker.proto import worker_pb2

from benchmarks import machine, models, processes, report, serving
from benchmarks.step_profile import made
from benchmarks.worker_host_work import decode_plan

STEPS_AT_ONCE = 6


def measure(model: str, rounds: int) -> list[tuple[float, float]]:
    """Of each round: bytes per second of weights in the median step, and of the best read after it."""
    num_bytes = models.bytes_read_per_token(models.path(model))
    engine = made(model, 1, rounds * STEPS_AT_ONCE + 1)
    numbers = torch.ones(machine.GIBIBYTE // 4)
    found, step = [], 0
    for _ in range(rounds):
        seconds = []
        for _ in range(STEPS_AT_ONCE):
            step += 1
            data = decode_plan(engine.shape, "greedy", step).SerializeToString()
            begun = time.perf_counter()
            result = engine.compute(worker_pb2.StepPlan.FromString(data))
            seconds.append(time.perf_counter() - begun)
            assert not result.failed, result.failed[0].message
        found.append((num_bytes / statistics.median(seconds), machine.read_rate(numbers, 4)))
    return found


def row(model: str, found: list[tuple[float, float]]) -> list[str]:
    shares = [ours / read for ours, read in found]
    columns = ([pair[side] / 1e9 for pair in found] for side in (0, 1))
    spans = [f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})" for values in columns]
    return [model, str(len(found)), *spans, f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["1b", "1b-int8", "1b-int4"], choices=models.NAMES)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    processes.begin_as_a_worker("benchmarks.roofline")
    torch.set_num_threads(placement.choose(placement.look(os.environ), 0, 1).threads)
    description = machine.describe()
    rows = [["model", "rounds", "a step's weights, GB/s", "a plain read, GB/s", "share"]]
    rows += [row(model, measure(model, options.rounds)) for model in options.models]
    lines = [
        f"# Decoding one row against a plain read of memory, {datetime.date.today().isoformat()}\n",
        f'`make bench-roofline ARGS="{" ".join(sys.argv[1:])}"`. Machine: {description}; after {machine.load()}\n',
        "Medians (least to most) of the rounds; the share is taken round by round.\n",
        *report.table(rows),
    ]
    print(*lines, sep="\n")
    serving.keep("roofline", lines)


if __name__ == "__main__":
    main()
