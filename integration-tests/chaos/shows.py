"""What the server must show, each as one function: the tests call them with small numbers, `make chaos` with all.

Each returns its figures and fails with an AssertionError that says what did not hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import Server
from millrace_chaos.answer import Outcome
from millrace_chaos.connection import BrokenError, Place, get
from millrace_chaos.load import Load, Manner, Tally
from millrace_chaos.phase import Row, Stage, run_phase
from millrace_chaos.processes import Processes, resident_bytes
from millrace_chaos.report import table
from millrace_chaos.run import FAULTS, Settings, prepare

LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
GAUGES = ("tgi_queue_size", "tgi_batch_current_size", "millrace_rows_used", "millrace_kv_pages_used")
FLAT_BYTES = 20_000_000
# Longer than what the launcher takes for health after a failure (a second until it looks, and five of health).
PEACE_SECONDS = 7.0
Figures = dict[str, Any]


@dataclass(frozen=True)
class Crowd:
    """How many clients there are, with how many distinct requests."""

    streams: int = 64
    distinct: int = 32
    new_tokens: int = 160

    def settings(self, server: Server) -> Settings:
        place = Place.of(server.url)
        return Settings(
            place,
            manner=Manner(self.streams),
            distinct=self.distinct,
            new_tokens=self.new_tokens,
            exact=True,
            processes=Processes(server.process.pid),
        )


def fault_phase(server: Server, name: str, rounds: int, crowd: Crowd) -> Row:
    """One fault under load. Nothing may be lost, duplicated or wrong, and health has to tell the truth."""
    fault = next(fault for fault in FAULTS if fault.name == name)

    async def phase() -> Row:
        return await run_phase(await prepare(crowd.settings(server)), fault, rounds)

    row = asyncio.run(phase())
    assert row.is_good, table([row]) + "\n" + server.output()[-3000:]
    assert row.strikes == rounds
    assert row.tally.count(Outcome.REFUSED) == 0, table([row])
    return row


def figures(row: Row) -> Figures:
    tally = row.tally
    return {
        "strikes": row.strikes,
        "sent": tally.sent,
        "completed": tally.count(Outcome.COMPLETED),
        "lost, duplicated, wrong": tally.failed,
        "longest stall s": round(tally.longest_stall, 2),
        "health false after s": row.unhealthy_after and round(row.unhealthy_after, 2),
        "livez false after s": row.not_live_after and round(row.not_live_after, 2),
        "health true after s": row.recovered_after and round(row.recovered_after, 2),
        "seconds": round(row.seconds, 1),
    }


def kills(server: Server, rounds: int, crowd: Crowd) -> Figures:
    """`kill -9` of random ranks."""
    return figures(fault_phase(server, "kill", rounds, crowd))


def stops(server: Server, rounds: int, crowd: Crowd) -> Figures:
    """SIGSTOP of random ranks."""
    return figures(fault_phase(server, "stop", rounds, crowd))


def routers(server: Server, rounds: int, crowd: Crowd) -> Figures:
    """`kill -9` of the router, each time when health has lasted long enough that no failure counts with an earlier one,
    which would be followed by a pause. Streams are cut, nothing else is lost, and the ranks stay."""
    ranks, seconds = sorted(server.children("millrace_worker")), []

    async def kill_all(load: Load) -> None:
        for _ in range(rounds):
            await asyncio.sleep(PEACE_SECONDS)
            [router] = server.children("millrace-router")
            load.cutting = True
            seconds.append(await kill_router(router, Place.of(server.url)))
            load.cutting = False
            await load.moved(0.25)

    tally = under_load(server, crowd, kill_all)
    assert tally.failed == 0, f"{tally}\n{server.output()[-3000:]}"
    assert sorted(server.children("millrace_worker")) == ranks, "the ranks did not survive their router"
    return {
        "kills": len(seconds),
        "sent": tally.sent,
        "completed": tally.count(Outcome.COMPLETED),
        "cut": tally.count(Outcome.CUT),
        "lost, duplicated, wrong": tally.failed,
        "ranks that died": 0,
        "/health 200 after s, median": round(statistics.median(seconds), 2),
        "/health 200 after s, slowest": round(max(seconds), 2),
    }


async def kill_router(router: int, place: Place) -> float:
    """Seconds until `GET /health`, asked when the killed process is gone, is answered with 200."""
    os.kill(router, signal.SIGKILL)
    began = time.monotonic()
    while time.monotonic() < began + 60:
        with contextlib.suppress(BrokenError):
            is_gone = not Path(f"/proc/{router}").exists()
            status, _ = await get(place, "/health", 60.0)
            if is_gone and status == 200:
                return time.monotonic() - began
        await asyncio.sleep(0.01)
    raise AssertionError("no health for a minute")


def disconnects(server: Server, rounds: int, crowd: Crowd) -> Figures:
    """Clients that vanish: nothing is left behind. The first fifth of them warms allocators up."""
    [router], workers = server.children("millrace-router"), server.children("millrace_worker")
    fault_phase(server, "disconnect", max(rounds // 5, 8), crowd)
    before = [resident_bytes(pid) for pid in (router, *workers)]
    row = fault_phase(server, "disconnect", rounds, crowd)
    deadline = time.monotonic() + 60
    while any(server.metric(name) for name in GAUGES) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = {name: server.metric(name) for name in GAUGES}
    assert left == dict.fromkeys(GAUGES, 0.0)
    growth = [resident_bytes(pid) - old for pid, old in zip((router, *workers), before, strict=True)]
    return figures(row) | {"gauges": "0", "growth of router and ranks in MB": [round(each / 1e6, 1) for each in growth]}


def assert_flat(shown: Figures) -> None:
    growth = shown["growth of router and ranks in MB"]
    assert all(each * 1e6 < FLAT_BYTES for each in growth), shown


Middle = Callable[[Load], Coroutine[Any, Any, None]]


def under_load(server: Server, crowd: Crowd, middle: Middle) -> Tally:
    """The load of `crowd` while `middle` does something to the server; its requests end by themselves."""

    async def run() -> Tally:
        stage: Stage = await prepare(crowd.settings(server))
        load = Load(stage.place, stage.asks, stage.references, stage.manner, stage.seed)
        load.start()
        await load.moved(0.5)
        try:
            await middle(load)
        finally:
            tally = await load.finish()
        return tally

    return asyncio.run(run())


def assert_all_completed(tally: Tally, server: Server) -> None:
    told = f"{tally}\n{server.output()[-3000:]}"
    assert tally.sent == tally.count(Outcome.COMPLETED) > 0, told


def drain(server: Server, crowd: Crowd) -> Figures:
    """SIGTERM under running streams: none is cut, and the launcher ends with 0. Who comes at that moment is refused."""
    at = 0.0

    async def stop(_load: Load) -> None:
        nonlocal at
        at = time.monotonic()
        server.process.send_signal(signal.SIGTERM)

    tally = under_load(server, crowd, stop)
    status = server.process.wait(60)
    refused = tally.count(Outcome.REFUSED)
    cut = tally.sent - tally.count(Outcome.COMPLETED) - refused
    assert cut == 0, f"{tally}\n{server.output()[-3000:]}"
    assert status == 0, server.output()[-3000:]
    return {"sent": tally.sent, "cut": cut, "refused newcomers": refused, "exit status": status}


def rolling_update(old: Server, new: Server, crowd: Crowd, late_seconds: float) -> Figures:
    """What Kubernetes does: SIGTERM for the old pod, to which clients keep coming until all know that it is no endpoint
    any more, `late_seconds` later; then new connections lead to the new pod, and half of the clients keep theirs. The
    lame-duck time of the old server has to be longer than `late_seconds` and a stream."""

    async def replace(load: Load) -> None:
        old.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(late_seconds)
        load.place = Place.of(new.url)
        await load.moved()

    tally = under_load(old, crowd, replace)
    assert_all_completed(tally, old)
    assert old.process.wait(60) == 0, old.output()[-3000:]
    return {"sent": tally.sent, "refused, lost, wrong": tally.sent - tally.count(Outcome.COMPLETED), "exit status": 0}


def library(source: Path, folder: Path) -> Path:
    """What the C compiler makes of a source that is to be preloaded."""
    made = folder / source.with_suffix(".so").name
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(source), "-o", str(made), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    return made


def refusing_allocator(folder: Path) -> dict[str, str]:
    """The environment of a server whose workers can be refused memory."""
    made = library(Path(__file__).parents[1] / "refuse.c", folder)
    refuse = {"REFUSE_FROM": "2048", "REFUSE_ONE_IN": "60", "REFUSE_WHILE": str(folder / "refuse")}
    return {"LD_PRELOAD": str(made)} | refuse


def shortages(server: Server, rounds: int, crowd: Crowd) -> Figures:
    """Memory refused at random points, for moments. No worker dies."""
    row = fault_phase(server, "no-memory", rounds, crowd)
    assert server.metric("millrace_worker_restarts_total") == 0
    refused = server.metric("millrace_out_of_memory_steps_total")
    assert refused > 0
    return figures(row) | {"steps without memory": refused, "workers that died": 0}


def set_clock(clock: Path, seconds: int) -> None:
    """In place: the file is mapped by every process, and a moment without its bytes would end them all."""
    with clock.open("r+b") as file:
        file.write(struct.pack("q", seconds))


def clock_jumps(server: Server, clock: Path, crowd: Crowd) -> Figures:
    """The wall clock of all processes goes a day ahead, two back, ten years ahead. Nobody may notice."""
    restarts = server.metric("millrace_worker_restarts_total")

    async def jump(load: Load) -> None:
        for seconds in (86_400, -86_400, 10 * 365 * 86_400, 0):
            set_clock(clock, seconds)
            await load.moved()
            assert await asyncio.to_thread(server.health) == 200, f"unhealthy after a jump of {seconds} s"

    tally = under_load(server, crowd, jump)
    assert_all_completed(tally, server)
    assert server.metric("millrace_worker_restarts_total") == restarts
    return {"sent": tally.sent, "completed": tally.count(Outcome.COMPLETED), "jumps": 4}
