"""The long runs with their figures: `make chaos`, or parts of it: `python integration-tests/chaos/must_show.py kills`.

SCALE (default 1) shortens all: 0.1 kills ten times instead of a hundred.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import checkpoints  # noqa: E402
import shows  # noqa: E402
from conftest import running  # noqa: E402

SCALE = float(os.environ.get("SCALE", "1"))
CROWD = shows.Crowd()
TWO_RANKS = (*shows.LIMITS, "--num-shard", "2")


def scaled(count: int) -> int:
    return max(1, round(count * SCALE))


def kills(model: Path, logs: Path) -> shows.Figures:
    with running(model, logs / "kills.log", *TWO_RANKS) as server:
        shown = shows.kills(server, scaled(100), CROWD)
    restart, stall = shown["health true after s"], shown["longest stall s"]
    assert stall <= restart + 2, f"the longest stall is {stall} s, the slowest restart took {restart} s"
    return shown


def stops(model: Path, logs: Path) -> shows.Figures:
    with running(model, logs / "stops.log", *TWO_RANKS, "--dump-folder", str(logs)) as server:
        shown = shows.stops(server, scaled(10), CROWD)
    assert shown["health false after s"] <= 5, shown
    assert shown["livez false after s"] <= 5, shown
    return shown


def routers(model: Path, logs: Path) -> shows.Figures:
    with running(model, logs / "routers.log", *TWO_RANKS) as server:
        shown = shows.routers(server, scaled(20), CROWD)
    assert shown["/health 200 after s, slowest"] <= 1, shown
    return shown


def drain(model: Path, logs: Path) -> shows.Figures:
    with running(model, logs / "drain.log", *TWO_RANKS) as server:
        return shows.drain(server, CROWD)


def rolling_update(model: Path, logs: Path) -> shows.Figures:
    with (
        running(model, logs / "old.log", *shows.LIMITS, "--lame-duck-seconds", "20") as old,
        running(model, logs / "new.log", *shows.LIMITS) as new,
    ):
        return shows.rolling_update(old, new, CROWD, late_seconds=8.0)


def disconnects(model: Path, logs: Path) -> shows.Figures:
    # A small pool, which is full of cached pages soon: memory that is used for the first time is no leak.
    pool = ("--kv-cache-memory", "8000000")
    with running(model, logs / "disconnects.log", *TWO_RANKS, *pool) as server:
        shown = shows.disconnects(server, scaled(10_000), CROWD)
    shows.assert_flat(shown)
    return shown


def shortages(model: Path, logs: Path) -> shows.Figures:
    environment = shows.refusing_allocator(logs)
    with running(model, logs / "shortages.log", *TWO_RANKS, **environment) as server:
        return shows.shortages(server, scaled(50), CROWD)


def poison(_model: Path, logs: Path) -> shows.Figures:
    """Requests that kill their worker: a test of its own, which says what has to hold, and what it has found."""
    test, report = HERE.parent / "test_poison.py", logs / "poison.xml"
    pytest = [sys.executable, "-m", "pytest", "-q", "-k", "poisonous"]
    subprocess.run([*pytest, str(test), f"--junitxml={report}"], check=True)
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = [case.get("name") for case in cases if case.find("skipped") is not None]
    assert cases, "nothing was tried"
    assert not skipped, f"not tried: {skipped}"
    return {case.get("name", "").rpartition("[")[2].rstrip("]"): _found(case) for case in cases}


def _found(case: ElementTree.Element) -> str:
    properties = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert properties, f"{case.get('name')} has found nothing"
    return "; ".join(f"{name} {value}" for name, value in properties.items())


SHOWS: dict[str, Callable[[Path, Path], shows.Figures]] = {
    "kills": kills,
    "stops": stops,
    "routers": routers,
    "poison": poison,
    "shortages": shortages,
    "drain": drain,
    "rolling_update": rolling_update,
    "disconnects": disconnects,
}


def main(names: list[str]) -> int:
    """Every show, or those of these names; the exit status is 1 if one did not hold."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoints.make(Path(folder) / "model")
        for name in names or SHOWS:
            began = time.monotonic()
            try:
                shown = SHOWS[name](model, Path(folder))
            except (AssertionError, subprocess.CalledProcessError) as error:
                failed += 1
                print(f"{name}: DID NOT HOLD: {error}", flush=True)
                continue
            text = ", ".join(f"{key} {value}" for key, value in shown.items() if value is not None)
            print(f"{name}: {text} ({time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f})", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
