"""How much memory and time a rank takes to load: `python -m benchmarks.loading [--ranks 1,2] [mid 1b-sharded]`.

Sizes are in GiB. The promise: a rank's peak of resident memory is at most its part of the checkpoint and 1 GiB
(interpreter and libraries included). Each rank is a process of its own, loads as the worker does, and reads its
figures from the kernel: the peak of resident memory (VmHWM), and what of it is anonymous and what are pages of mapped
files at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Nothing that the worker does not import itself: `--here` measures this process.
GIB = 2**30
SHARD_BYTES = 512 << 20


def folder_of(name: str) -> Path:
    """A model of `models.SHAPES`; with `-sharded`, the same in files of at most 512 MiB."""
    from benchmarks import models

    if not name.endswith("-sharded"):
        return models.path(name)
    folder = models.FOLDER / name
    if not folder.is_dir():
        split(models.path(name.removesuffix("-sharded")), folder)
    return folder


def split(source: Path, target: Path) -> None:
    from millrace_worker.convert import write_safetensors
    from millrace_worker.models.checkpoint import Checkpoint
    from millrace_worker.models.weight_files import find_tensors

    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.mkdir()
    stored, checkpoint = find_tensors(source), Checkpoint(source)
    shards: list[list[str]] = [[]]
    held = 0
    for name, tensor in sorted(stored.items()):
        if held and held + tensor.stop - tensor.start > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += tensor.stop - tensor.start
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(unfinished / file, {name: checkpoint.read(name, stored[name].shape) for name in names})
        weight_map |= dict.fromkeys(names, file)
    (unfinished / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    (unfinished / "config.json").write_bytes((source / "config.json").read_bytes())
    unfinished.rename(target)


@dataclass(frozen=True)
class Loaded:
    """One rank: seconds for joining and loading, and bytes."""

    seconds: float
    peak: int
    before: int
    anonymous: int
    mapped: int


def status() -> dict[str, int]:
    """The sizes that the kernel knows of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith(" kB")}


def load_here(folder: Path, dtype: str) -> Loaded:
    from millrace_worker.config import read_config
    from millrace_worker.load import load_rank

    before = status()["VmRSS"]
    started = time.perf_counter()
    argv = ["--model-path", str(folder), "--uds-path", "none", "--dtype", dtype]
    rank = load_rank(read_config(argv, os.environ))
    seconds, after = time.perf_counter() - started, status()
    del rank
    return Loaded(seconds, after["VmHWM"], before, after["RssAnon"], after["RssFile"] + after["RssShmem"])


def measure(folder: Path, ranks: int, *, cold: bool) -> list[Loaded]:
    """Every rank's figures. `cold`: the files are not in the system's cache."""
    if cold:
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    dtype = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
    command = [sys.executable, "-m", "benchmarks.loading", "--here", str(folder), "--dtype", dtype]
    processes = [
        subprocess.Popen(command, env=os.environ | group | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    return [Loaded(**json.loads(process.communicate(timeout=600)[0].splitlines()[-1])) for process in processes]


def row(name: str, folder: Path, ranks: int, *, cold: bool) -> str:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    found = measure(folder, ranks, cold=cold)
    worst = max(found, key=lambda each: each.peak)
    beyond = worst.peak - size / ranks
    verdict = "holds" if beyond <= GIB else "BROKEN"
    gib = [size / ranks, worst.before, worst.peak, worst.anonymous, worst.mapped, beyond]
    seconds = max(each.seconds for each in found)
    figures = " | ".join(f"{value / GIB:.2f}" for value in gib)
    return f"| {name} | {ranks} | {'cold' if cold else 'warm'} | {figures} | {seconds:.1f} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["mid", "1b-sharded"])
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--here", type=Path, help="load this folder in this process and print the figures")
    parser.add_argument("--dtype", help="of the weights that --here loads")
    asked = parser.parse_args()
    if asked.here is not None:
        print(json.dumps(vars(load_here(asked.here, asked.dtype))))
        return
    from benchmarks import machine

    columns = ("checkpoint", "ranks", "files", "part", "before", "peak", "anonymous", "mapped", "beyond", "s", "bound")
    print(f"{machine.describe()}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in asked.names:
        for ranks in map(int, asked.ranks.split(",")):
            for cold in (True, False):
                print(row(name, folder_of(name), ranks, cold=cold), flush=True)


if __name__ == "__main__":
    main()
