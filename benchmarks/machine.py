"""The machine a figure was taken on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch

FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
GIBIBYTE = 2**30


def describe() -> str:
    """One line: processor, cores, the vector extension that matters, load averages."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line), "")
    flag = next((flag for flag in FLAGS if f" {flag} " in text.replace("\n", " ")), "no vector extension named")
    return f"{name or platform.machine()}, {os.cpu_count()} cores, {flag}; load before {load()}"


def load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of all cores together in a matrix product of torch's library, 2048 x 2048 x
    2048: the best of eight, or of those that fit into two seconds."""
    left, right = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    seconds: list[float] = []
    while len(seconds) < 8 and sum(seconds) < 2:
        started = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds)


def read_bandwidth() -> float:
    """Bytes per second that all cores together read from memory: the best of eight sums over 1 GiB."""
    return read_rate(torch.ones(GIBIBYTE // 4), 8)


def read_rate(numbers: torch.Tensor, times: int) -> float:
    """Bytes per second of the best of so many sums, by all cores together."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - started)
    return numbers.nbytes / min(seconds)
