"""One phase: the load from its start to its end, and one fault's strikes in between."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from millrace_chaos.answer import Answer
from millrace_chaos.asks import Ask
from millrace_chaos.connection import Place
from millrace_chaos.fault import Fault, Needs, Scene
from millrace_chaos.load import Load, Manner, Tally
from millrace_chaos.process_faults import REFUSAL
from millrace_chaos.processes import Processes, resident_bytes
from millrace_chaos.watch import Watch, slowest

# Longer than what the launcher takes for health after a failure (five seconds).
_PEACE_SECONDS = 6.0
# In phases without a fault the load has its clients ask so often, on average.
QUIET_TURNS = 2


@dataclass(frozen=True)
class Stage:
    """What all phases of a run share."""

    place: Place
    asks: Sequence[Ask]
    references: Mapping[int, Answer]
    manner: Manner
    new_tokens: int
    seed: int
    processes: Processes | None = None


@dataclass
class Row:
    """A line of the report. Times are in seconds, None where nothing turned."""

    fault: str
    strikes: int = 0
    tally: Tally = field(default_factory=Tally)
    unhealthy_after: float | None = None  # the slowest /health to turn false after a strike
    not_live_after: float | None = None  # the same of /livez
    recovered_after: float | None = None  # the slowest /health to be true again after a strike
    slowest_health: float = 0.0  # the slowest answer of a health route
    router_bytes: tuple[int, int] | None = None  # resident before and after, where its process can be seen
    seconds: float = 0.0
    ended_well: bool = True  # healthy at the end
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.tally.failed and not self.problems


async def run_phase(stage: Stage, fault: Fault | None, rounds: int) -> Row:
    """`fault` None: nothing happens but the load."""
    row = Row(fault.name if fault else "none")
    began = time.monotonic()
    load = Load(stage.place, stage.asks, stage.references, stage.manner, stage.seed)
    watch = Watch(stage.place)
    chance = random.Random(f"{stage.seed} {row.fault}")
    scene = Scene(stage.place, load, watch, chance, stage.processes, new_tokens=stage.new_tokens)
    before = _router_bytes(stage)
    await watch.start()
    load.start()
    try:
        if fault is None:
            for _ in range(QUIET_TURNS):
                await load.moved()
        else:
            await load.moved(0.5)
            await _strikes(scene, fault, rounds, row)
        if not await watch.well(stage.manner.patience):
            row.ended_well = False
            scene.problems.append("the server is not healthy at the end")
    finally:
        row.tally = await load.finish()
        await watch.stop()
    after = _router_bytes(stage)
    row.router_bytes = (before, after) if before and after else None
    row.slowest_health = watch.slowest_answer
    if not (fault and fault.disturbs_health) and watch.ever_false(began):
        scene.problems.append(f"health turned false, for which there was no reason: {_turns(watch, began)}")
    row.problems = scene.problems
    row.seconds = time.monotonic() - began
    return row


async def _strikes(scene: Scene, fault: Fault, rounds: int, row: Row) -> None:
    if fault.together == 1:
        await _one_by_one(scene, fault, rounds, row)
        return

    async def strike_on() -> None:
        while row.strikes < rounds:
            row.strikes += 1
            await fault.strike(scene)

    async with asyncio.TaskGroup() as group:
        for _ in range(fault.together):
            group.create_task(strike_on())


async def _one_by_one(scene: Scene, fault: Fault, rounds: int, row: Row) -> None:
    """With what health says about each strike, and peace between them."""
    noticed: list[float | None] = []
    not_live: list[float | None] = []
    recovered: list[float | None] = []
    for _ in range(rounds):
        at = scene.struck_at = time.monotonic()
        scene.load.cutting = fault.cuts
        await fault.strike(scene)
        scene.load.cutting = False
        row.strikes += 1
        if fault.disturbs_health:
            unhealthy = scene.watch.turned("/health", False, at)
            noticed.append(unhealthy)
            not_live.append(scene.watch.turned("/livez", False, at))
            if unhealthy is not None:
                recovered.append(scene.watch.turned("/health", True, at))
        await _peace(scene, fault, row.strikes)
    row.unhealthy_after, row.not_live_after, row.recovered_after = map(slowest, (noticed, not_live, recovered))


async def _peace(scene: Scene, fault: Fault, strikes: int) -> None:
    """Between two strikes answers come again; after some in a row the server has time to be well."""
    await scene.load.moved(0.25)
    if fault.in_a_row is not None and strikes % fault.in_a_row == 0:
        await asyncio.sleep(_PEACE_SECONDS)
    else:
        await asyncio.sleep(scene.chance.uniform(0.0, 1.0))


def _router_bytes(stage: Stage) -> int:
    router = stage.processes.router() if stage.processes else None
    return resident_bytes(router) if router else 0


def _turns(watch: Watch, began: float) -> str:
    shown = (
        f"{turn.route} {'true' if turn.well else 'false'} at {turn.at - began:.1f} s ({turn.why})"
        for turn in watch.changes[:6]
    )
    return ", ".join(shown)


def can_run(fault: Fault, processes: Processes | None) -> bool:
    if fault.needs is Needs.ALLOCATOR:
        return processes is not None and processes.told(REFUSAL) is not None
    return fault.needs is Needs.URL or processes is not None
