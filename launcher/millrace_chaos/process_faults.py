"""Faults of the server's own processes: ranks and router killed, stopped, slowed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from millrace_chaos.fault import Fault, Needs, Scene

# The launcher gives up after five failures without five seconds of health between them; that is its promise, not a bug.
_IN_A_ROW = 3
# Of the ranks' environment: the file that makes their allocator refuse while it exists.
REFUSAL = "REFUSE_WHILE"


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _some_rank(scene: Scene) -> int | None:
    """A random one of those that live; none when the server has given up, which is noted."""
    await scene.until(lambda: bool(scene.own().ranks()), "the start of a rank")
    return scene.chance.choice(scene.own().ranks() or [None])


async def _replaced(scene: Scene, old: list[int]) -> None:
    """Until as many new ranks are there and health is true again."""
    processes = scene.own()

    def is_new() -> bool:
        now = processes.ranks()
        return len(now) == len(old) and not set(now) & set(old)

    if await scene.until(is_new, "the replacement of the ranks"):
        # New processes may be there before anybody has looked at the router's health again.
        await scene.until(lambda: scene.watch.ever_false(scene.struck_at), "health turning false")
        await scene.until(scene.watch.is_well, "the recovery of health")


class KillRank(Fault):
    name = "kill"
    told = "kill -9 of a random rank; it is replaced, and every stream goes on"
    needs = Needs.PROCESSES
    rounds = 3
    disturbs_health = True
    in_a_row = _IN_A_ROW

    async def strike(self, scene: Scene) -> None:
        victim, ranks = await _some_rank(scene), scene.own().ranks()
        if victim is not None:
            _send(victim, signal.SIGKILL)
            await _replaced(scene, ranks)


class StopRank(Fault):
    name = "stop"
    told = "SIGSTOP of a random rank; it is found to hang and replaced"
    needs = Needs.PROCESSES
    rounds = 1
    disturbs_health = True
    in_a_row = _IN_A_ROW

    async def strike(self, scene: Scene) -> None:
        victim, ranks = await _some_rank(scene), scene.own().ranks()
        if victim is None:
            return
        _send(victim, signal.SIGSTOP)
        try:
            await _replaced(scene, ranks)
        finally:
            if victim in scene.own().ranks():
                _send(victim, signal.SIGCONT)


class SlowRank(Fault):
    """Stopped and continued again and again: far slower than the others, and yet no rank that hangs."""

    name = "slow-rank"
    told = "a rank that stands still for moments, over and over; health stays true"
    needs = Needs.PROCESSES
    rounds = 2

    async def strike(self, scene: Scene) -> None:
        victim = await _some_rank(scene)
        if victim is None:
            return
        for _ in range(8):
            _send(victim, signal.SIGSTOP)
            try:
                await asyncio.sleep(scene.chance.uniform(0.05, 0.5))
            finally:
                _send(victim, signal.SIGCONT)
            await asyncio.sleep(scene.chance.uniform(0.02, 0.2))


class NoMemory(Fault):
    """The allocator refuses as long as a file exists, whose name the workers were started with."""

    name = "no-memory"
    told = "workers are refused memory at random; nobody dies"
    needs = Needs.ALLOCATOR
    rounds = 3

    async def strike(self, scene: Scene) -> None:
        ranks = scene.own().ranks()
        name = scene.own().told(REFUSAL)
        if name is None:
            scene.problems.append("the ranks are gone")
            return
        refuse = Path(name)
        refuse.touch()
        try:
            await asyncio.sleep(scene.chance.uniform(0.5, 2.0))
        finally:
            refuse.unlink()
        await scene.load.moved(0.25)
        if scene.own().ranks() != ranks:
            scene.problems.append("ranks died of a shortage of memory")


class KillRouter(Fault):
    name = "kill-router"
    told = "kill -9 of the router; its streams are cut, the workers keep their weights"
    needs = Needs.PROCESSES
    rounds = 2
    cuts = True
    disturbs_health = True
    in_a_row = _IN_A_ROW

    async def strike(self, scene: Scene) -> None:
        processes = scene.own()
        await scene.until(lambda: processes.router() is not None, "the start of the router")
        router, ranks = processes.router(), processes.ranks()
        if router is None:
            return
        _send(router, signal.SIGKILL)
        # The new one may be there so soon that nobody has seen health turn false.
        await scene.until(lambda: processes.router() not in (None, router), "a new router")
        there = time.monotonic()
        await scene.until(lambda: scene.watch.is_well_since(there), "the recovery of health")
        if processes.ranks() != ranks:
            scene.problems.append("the ranks did not survive their router")
