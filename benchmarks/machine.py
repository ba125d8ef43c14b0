"""The machine a figure was taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def describe() -> str:
    """One line: processor, cores, the vector extension that matters, load averages."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line), "")
    flag = next((flag for flag in FLAGS if f" {flag} " in text.replace("\n", " ")), "no vector extension named")
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{name or platform.machine()}, {os.cpu_count()} cores, {flag}; load before {load}"
