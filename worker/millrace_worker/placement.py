"""Where a rank computes on CPUs: with how many threads, and near which memory.

Decided before torch is imported, by the standard library alone: pure functions over `Cpus`, and what reads those.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Variables by which the user says on which cores OpenMP's threads run: then nobody else does.
BINDINGS = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")


@dataclass(frozen=True)
class Cpus:
    """What this process may use of the machine's CPUs.

    `mask`: the cores of its affinity mask. `nodes`: all cores of each NUMA node by the node's number, empty where that
    is not known. `quota`: how many cores' time its control groups allow, in whole cores; None without a limit.
    """

    mask: frozenset[int]
    nodes: Mapping[int, frozenset[int]] = field(default_factory=dict)
    quota: int | None = None


@dataclass(frozen=True)
class Place:
    """One rank's. `nodes` and `cores` are those to which it keeps, both empty where it keeps to none.

    `quota` is what all ranks may use together, see `Cpus`.
    """

    threads: int = 1
    nodes: tuple[int, ...] = ()
    cores: frozenset[int] = frozenset()
    quota: int | None = None

    def fields(self, mask: Collection[int]) -> dict[str, object]:
        """For the log; `mask`: the cores on which the process runs now."""
        nodes = {"nodes": as_list(self.nodes)} if self.nodes else {}
        quota = {} if self.quota is None else {"quota": self.quota}
        return {"threads": self.threads, "cores": as_list(mask), **nodes, **quota}


ONE_THREAD = Place()


def choose(cpus: Cpus, rank: int, size: int, asked: int | None = None) -> Place:
    """The place of one of `size` ranks. `asked`: the user's number of threads, which counts whatever the machine has.

    Ranks share the nodes out: each has one, together with others where there are more ranks, or a run of neighbours
    where there are fewer. All have as many threads, since the slowest holds up a step. So none keeps to a node where
    all have one and the same, nor where some rank's part of its nodes is too small for its threads.
    """
    usable = len(cpus.mask) if cpus.quota is None else min(len(cpus.mask), cpus.quota)
    even = max(1, usable // size)
    anywhere = Place(asked or even, quota=cpus.quota)
    nodes = reached(cpus)
    if size == 1 or len(nodes) < 2:
        return anywhere
    parts = [_part(tuple(nodes), each, size) for each in range(size)]
    cores = {part: frozenset[int]().union(*(nodes[node] for node in part)) for part in parts}
    if asked is None:
        fits = all(len(cores[part]) // parts.count(part) >= even for part in cores)
    else:
        fits = all(len(cores[part]) >= asked for part in cores)
    return Place(asked or even, parts[rank], cores[parts[rank]], cpus.quota) if fits else anywhere


def _part(nodes: tuple[int, ...], rank: int, size: int) -> tuple[int, ...]:
    """Of all nodes, those of one of `size` ranks."""
    first = rank * len(nodes) // size
    return nodes[first : max(first + 1, (rank + 1) * len(nodes) // size)]


def reached(cpus: Cpus) -> dict[int, frozenset[int]]:
    """The cores of the mask on each node, without the nodes that have none of them, in the nodes' order.

    Empty where a core is on several nodes or on none: what the system says of such a machine is not understood here.
    """
    parts = {node: cores & cpus.mask for node, cores in sorted(cpus.nodes.items()) if cores & cpus.mask}
    is_partition = sum(map(len, parts.values())) == len(cpus.mask) == len(frozenset[int]().union(*parts.values()))
    return parts if is_partition else {}


def look(environment: Mapping[str, str], root: Path = Path("/")) -> Cpus:
    """What there is. Nodes are not looked for where `environment` binds threads to cores itself."""
    nodes = {} if is_bound(environment) else read_nodes(root)
    return Cpus(frozenset(os.sched_getaffinity(0)), nodes, read_quota(root))


def is_bound(environment: Mapping[str, str]) -> bool:
    """Whether the user says on which cores OpenMP's threads run."""
    return any(environment.get(name, "").lower() not in ("", "false") for name in BINDINGS)


def pin(cores: Collection[int]) -> None:
    """Keeps all threads of this process to `cores`, and with them those that they start later.

    Raises OSError when the system does not allow it, for example because the process may not use these cores any more.
    """
    moved: set[int] = set()
    # One that was not moved yet may have started another meanwhile.
    while tasks := {int(task.name) for task in Path("/proc/self/task").iterdir()} - moved:
        for task in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(task, cores)
        moved |= tasks


def read_nodes(root: Path) -> dict[int, frozenset[int]]:
    """The cores of each NUMA node; empty where the system does not say, or says it in another way."""
    nodes = {}
    try:
        for file in (root / "sys/devices/system/node").glob("node[0-9]*/cpulist"):
            nodes[int(file.parent.name.removeprefix("node"))] = parse_list(file.read_text())
    except (OSError, ValueError):
        return {}
    return nodes


def parse_list(text: str) -> frozenset[int]:
    """The kernel's way to write cores, for example "0-3,8". Raises ValueError when it is none."""
    cores = set[int]()
    for part in filter(None, text.strip().split(",")):
        first, is_range, last = part.partition("-")
        found = range(int(first), int(last if is_range else first) + 1)
        if not found:
            raise ValueError(f"{part!r} is no range of cores")
        cores.update(found)
    return frozenset(cores)


def as_list(numbers: Collection[int]) -> str:
    """What `parse_list` reads."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def read_quota(root: Path) -> int | None:
    """The smallest CPU limit of this process's control groups and of those above them, in cores, rounded up.

    None without one. A container sees its own group as the highest, where it may not find the path that it is told.
    """
    quotas = []
    for folder in _control_groups(root):
        for read in (_quota_v2, _quota_v1):
            with contextlib.suppress(OSError, ValueError):
                quota, period = read(folder)
                if quota > 0 and period > 0:
                    quotas.append(-(-quota // period))
    return min(quotas, default=None)


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders that may hold a limit, of every hierarchy that limits CPUs: the process's own group, then those above."""
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # v2 names no controllers; beside hierarchies of v1 it is mounted in a folder of its own.
        hierarchies = [mounted / name for name in ((controllers, "cpu") if controllers else ("", "unified"))]
        own = Path("." if ".." in path.split("/") else path.lstrip("/"))
        for hierarchy in dict.fromkeys(hierarchies):
            yield from (hierarchy / group for group in (own, *own.parents))


def _quota_v2(folder: Path) -> tuple[int, int]:
    """Microseconds of CPU time in each period, and of the period. Raises ValueError for "max": no limit."""
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota), int(period)


def _quota_v1(folder: Path) -> tuple[int, int]:
    """As above; the quota is -1 without a limit."""
    return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
