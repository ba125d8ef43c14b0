"""Where ranks compute on CPUs: by made-up machines, and by what the system's files would say of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from millrace_worker import placement
from millrace_worker.placement import BINDINGS, Cpus, Place, as_list, choose, look, parse_list, read_nodes, read_quota


@st.composite
def machines(draw: st.DrawFn) -> Cpus:
    """Up to six nodes of unequal sizes, whose cores and numbers are in no order; some are beyond the mask."""
    counts = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    cores = draw(st.permutations(range(sum(counts))))
    numbers = draw(st.permutations(range(8)))
    nodes = {
        number: frozenset(cores.pop() for _ in range(count)) for number, count in zip(numbers, counts, strict=False)
    }
    everything = frozenset[int]().union(*nodes.values()) or frozenset({0})
    mask = draw(st.sets(st.sampled_from(sorted(everything)), min_size=1) | st.just(everything))
    return Cpus(frozenset(mask), nodes, draw(st.none() | st.integers(1, 80)))


def on_nodes(cpus: Cpus) -> dict[int, frozenset[int]]:
    return {node: cores & cpus.mask for node, cores in cpus.nodes.items() if cores & cpus.mask}


@given(machines(), st.integers(1, 12), st.none() | st.integers(1, 12))
def test_ranks_share_the_nodes_or_none_keeps_to_any(cpus: Cpus, size: int, asked: int | None) -> None:
    nodes = on_nodes(cpus)
    places = [choose(cpus, rank, size, asked) for rank in range(size)]
    if not all(place.cores for place in places):
        assert all(not place.cores and not place.nodes for place in places)
        return
    assert size > 1
    assert len(nodes) > 1
    assert frozenset[int]().union(*(place.cores for place in places)) == cpus.mask
    for place in places:
        assert place.cores == frozenset[int]().union(*(nodes[node] for node in place.nodes))
        assert len(place.nodes) == 1 or size < len(nodes)
        for other in places:
            assert place.nodes == other.nodes or place.cores.isdisjoint(other.cores)
    # Neighbours share, or have what is next to them.
    order = [node for place in dict.fromkeys(places) for node in place.nodes]
    assert order == sorted(nodes)
    # No node has two ranks more than another, and no rank two nodes more.
    for counts in ([len(place.nodes) for place in places], [[p.nodes for p in places].count((n,)) for n in nodes]):
        assert max(counts) - min(counts) <= 1


@given(machines(), st.integers(1, 12))
def test_all_ranks_have_as_many_threads_and_cores_for_them(cpus: Cpus, size: int) -> None:
    places = [choose(cpus, rank, size) for rank in range(size)]
    usable = min(len(cpus.mask), cpus.quota or len(cpus.mask))
    assert {place.threads for place in places} == {max(1, usable // size)}
    for place in (each for each in places if each.cores):
        company = sum(other.nodes == place.nodes for other in places)
        assert company * place.threads <= len(place.cores)


@given(machines(), st.integers(1, 12), st.integers(1, 100))
def test_the_user_decides_how_many_threads(cpus: Cpus, size: int, asked: int) -> None:
    for rank in range(size):
        place = choose(cpus, rank, size, asked)
        assert place.threads == asked
        assert not place.cores or asked <= len(place.cores)


@pytest.mark.parametrize(
    ("counts", "size", "is_near"),
    [
        ((8, 8), 2, True),
        ((8, 8), 4, True),
        ((3, 2), 2, True),
        ((15, 1), 2, False),
        ((4, 2), 2, False),
        ((8, 8), 3, False),
    ],
)
def test_no_rank_has_fewer_cores_for_being_near_its_memory(counts: tuple[int, int], size: int, is_near: bool) -> None:
    first = frozenset(range(counts[0]))
    cpus = Cpus(frozenset(range(sum(counts))), {0: first, 1: frozenset(range(sum(counts))) - first})
    for rank in range(size):
        place = choose(cpus, rank, size)
        assert bool(place.cores) == is_near
        assert place.threads == sum(counts) // size


@pytest.mark.parametrize(
    "nodes",
    [
        {},
        {0: frozenset({0, 1, 2}), 1: frozenset({2, 3})},  # a core on both
        {0: frozenset({0, 1}), 1: frozenset({2})},  # a core on none
        {0: frozenset({0, 1, 2, 3}), 1: frozenset()},  # memory without cores
        {0: frozenset({0, 1, 2, 3}), 1: frozenset({4, 5})},  # beyond the mask
    ],
)
def test_what_is_odd_or_one_node_pins_nothing(nodes: dict[int, frozenset[int]]) -> None:
    assert choose(Cpus(frozenset(range(4)), nodes), 1, 2) == Place(2)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


NODE = "sys/devices/system/node"


def test_nodes_are_read_as_linux_writes_them(tmp_path: Path) -> None:
    files = {"node0/cpulist": "0-1,8\n", "node11/cpulist": "2-3\n", "node2/cpulist": "\n", "online": "0,2,11\n"}
    root = write(tmp_path, {f"{NODE}/{name}": text for name, text in files.items()})
    assert read_nodes(root) == {0: frozenset({0, 1, 8}), 11: frozenset({2, 3}), 2: frozenset()}
    cpus = look({}, root)
    assert cpus.mask == frozenset(os.sched_getaffinity(0))
    assert cpus.nodes == read_nodes(root)
    # Threads that the user has bound stay where they are.
    for name in BINDINGS:
        assert not look({name: "true"}, root).nodes


@pytest.mark.parametrize("text", ["0-", "3-1", "a", "0 1", "-1", "\x00"])
def test_nodes_that_are_not_understood_are_none(tmp_path: Path, text: str) -> None:
    files = {f"{NODE}/node0/cpulist": "0-3\n", f"{NODE}/node1/cpulist": text}
    assert read_nodes(write(tmp_path, files)) == {}
    (tmp_path / NODE / "node1/cpulist").unlink()
    (tmp_path / NODE / "node1/cpulist").mkdir()
    assert read_nodes(tmp_path) == {}
    assert read_nodes(tmp_path / "absent") == {}


@given(st.sets(st.integers(0, 40)))
def test_lists_of_cores_are_written_as_they_are_read(cores: set[int]) -> None:
    assert parse_list(as_list(cores)) == cores


def test_lists_of_cores_are_short() -> None:
    assert as_list({9, 0, 1, 2, 4, 6, 7}) == "0-2,4,6-7,9"


V2, V1, BOTH = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/unified"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        pytest.param("0::/", {f"{V2}/cpu.max": "200000 100000\n"}, 2, id="container"),
        pytest.param("0::/", {f"{V2}/cpu.max": "150000 100000\n"}, 2, id="rounded up"),
        pytest.param("0::/", {f"{V2}/cpu.max": "1000 100000\n"}, 1, id="at least one"),
        pytest.param("0::/", {f"{V2}/cpu.max": "max 100000\n"}, None, id="no limit"),
        pytest.param(
            "0::/a/b", {f"{V2}/a/b/cpu.max": "max 10000\n", f"{V2}/a/cpu.max": "30000 10000\n"}, 3, id="above"
        ),
        pytest.param("0::/a", {f"{V2}/a/cpu.max": "50000 10000\n", f"{V2}/cpu.max": "90000 10000\n"}, 5, id="smallest"),
        pytest.param("0::/a", {f"{V2}/b/cpu.max": "100000 100000\n"}, None, id="another's"),
        pytest.param("0::/host/path", {f"{V2}/cpu.max": "400000 100000\n"}, 4, id="the host's path"),
        pytest.param("0::/../other", {f"{V2}/cpu.max": "400000 100000\n"}, 4, id="beyond the namespace"),
        pytest.param("0::/", {f"{V2}/cpu.max": "lots\n"}, None, id="odd"),
        pytest.param("0::/", {f"{V2}/cpu.max": "0 0\n"}, None, id="nothing"),
        pytest.param("", {}, None, id="no groups"),
        pytest.param(None, {f"{V2}/cpu.max": "200000 100000\n"}, 2, id="path unknown"),
        pytest.param(
            "4:cpu,cpuacct:/docker/1\n0::/",
            {f"{V1}/cpu.cfs_quota_us": "250000\n", f"{V1}/cpu.cfs_period_us": "100000\n"},
            3,
            id="v1",
        ),
        pytest.param(
            "3:cpuset:/\n1:cpu:/a",
            {f"{V2}/cpu/a/cpu.cfs_quota_us": "-1\n", f"{V2}/cpu/a/cpu.cfs_period_us": "100000\n"},
            None,
            id="v1 without a limit",
        ),
        pytest.param("1:cpu:/a", {f"{V2}/cpu/a/cpu.cfs_quota_us": "100000\n"}, None, id="v1 without a period"),
        pytest.param("2:name=systemd:/a\n0::/b", {f"{BOTH}/b/cpu.max": "700000 100000\n"}, 7, id="v2 beside v1"),
    ],
)
def test_the_limit_of_control_groups_is_read(
    tmp_path: Path, own: str | None, files: dict[str, str], cores: int | None
) -> None:
    write(tmp_path, files | ({} if own is None else {"proc/self/cgroup": own + "\n"}))
    assert read_quota(tmp_path) == cores
    assert look({}, tmp_path).quota == cores


def test_a_machine_that_says_nothing_has_neither_nodes_nor_a_limit(tmp_path: Path) -> None:
    assert look({}, tmp_path) == Cpus(frozenset(os.sched_getaffinity(0)))


PINS_ALL = """
import os, threading
from pathlib import Path
from millrace_worker.placement import pin
leave, kept = threading.Event(), max(os.sched_getaffinity(0))
threads = [threading.Thread(target=leave.wait) for _ in range(3)]
for thread in threads[:2]:
    thread.start()
pin({kept})
threads[2].start()
tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
assert len(tasks) == 4, tasks
assert all(os.sched_getaffinity(task) == {kept} for task in tasks)
leave.set()
"""


def test_all_threads_of_a_process_are_pinned() -> None:
    """Those that were there before, and those that come after; in a process of its own, which they do not outlive."""
    environ = {"PYTHONPATH": str(Path(placement.__file__).parents[1]), "PATH": ""}
    subprocess.run([sys.executable, "-c", PINS_ALL], env=environ, check=True)


def test_a_place_is_told_in_few_words() -> None:
    assert Place(2).fields({0, 1, 2, 3}) == {"threads": 2, "cores": "0-3"}
    place = Place(4, (0, 1), frozenset(range(8)), quota=16)
    assert place.fields(place.cores) == {"threads": 4, "cores": "0-7", "nodes": "0-1", "quota": 16}
