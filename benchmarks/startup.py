"""Seconds from starting the launcher to the first 200 of /health, for the demo model (or another).

`python -m benchmarks.startup [MODEL] [--rounds N]`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import machine, processes

PORT = 8104


def start_once(model: str) -> float:
    launcher = Path(sys.executable).parent / "millrace-launcher"
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(launcher), "--model-id", model, "--port", str(PORT), "--hostname", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        processes.wait_healthy(PORT, process)
        return time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine.describe())
    seconds = [start_once(options.model) for _ in range(options.rounds)]
    print(f"{options.model}: median {statistics.median(seconds):.2f} s of", *(f"{s:.2f}" for s in seconds))


if __name__ == "__main__":
    main()
