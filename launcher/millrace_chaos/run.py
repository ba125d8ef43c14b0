"""A whole run: the references, a phase without a fault, a phase for each fault."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from millrace_chaos.answer import Outcome, ViolationError
from millrace_chaos.asks import Api, Ask, Sizes, make_asks
from millrace_chaos.client_faults import Disconnect, Hostile, SlowReader
from millrace_chaos.connection import BrokenError, Place, get, get_json
from millrace_chaos.fault import Fault, Needs
from millrace_chaos.load import Manner, take_references
from millrace_chaos.phase import Row, Stage, can_run, run_phase
from millrace_chaos.process_faults import KillRank, KillRouter, NoMemory, SlowRank, StopRank
from millrace_chaos.processes import Processes

FAULTS: tuple[Fault, ...] = (
    Disconnect(),
    SlowReader(),
    Hostile(),
    KillRank(),
    StopRank(),
    SlowRank(),
    KillRouter(),
    NoMemory(),
)
URL_FAULTS = tuple(fault.name for fault in FAULTS if fault.needs is Needs.URL)


class CannotRunError(Exception):
    """There is nothing to try: no server, or one that does not answer even undisturbed."""


@dataclass(frozen=True)
class Settings:
    """`rounds` by a fault's name; others have their own number of strikes. `exact` None: ids are compared if they hold
    undisturbed."""

    place: Place
    faults: tuple[str, ...] = URL_FAULTS
    manner: Manner = field(default_factory=Manner)
    distinct: int = 32
    new_tokens: int = 120
    rounds: Mapping[str, int] = field(default_factory=dict)
    exact: bool | None = None
    seed: int = 0
    processes: Processes | None = None


@dataclass(frozen=True)
class Findings:
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def is_good(self) -> bool:
        return all(row.is_good for row in self.rows)


def chosen(names: Sequence[str]) -> list[Fault]:
    """The faults of these names, in the order of the table. Raises `ValueError` for a name that is none."""
    unknown = sorted(set(names) - {fault.name for fault in FAULTS})
    if unknown:
        known = ", ".join(fault.name for fault in FAULTS)
        raise ValueError(f"no fault has the name {', '.join(unknown)}; there are {known}")
    return [fault for fault in FAULTS if fault.name in names]


async def prepare(settings: Settings) -> Stage:
    """Looks at the server and takes the references. Raises `CannotRunError`."""
    try:
        await _wait_until_well(settings)
        info = await get_json(settings.place, "/info")
        sizes = _sizes(info, settings.new_tokens)
        chance = random.Random(settings.seed)
        asks = make_asks(settings.distinct, sizes, chance, chat=await _talks(settings))
        references = await take_references(settings.place, asks, settings.manner.patience)
    except (BrokenError, ViolationError) as error:
        raise CannotRunError(f"undisturbed, the server does not answer as it should: {error}") from None
    return Stage(settings.place, asks, references, settings.manner, sizes.new_tokens, settings.seed, settings.processes)


async def run(settings: Settings, say: Callable[[str], None]) -> Findings:
    """Runs every chosen fault; `say` gets lines about what goes on."""
    faults = chosen(settings.faults)
    say(f"taking {settings.distinct} answers of the undisturbed server")
    stage = await prepare(settings)
    notes: list[str] = []
    say(f"{settings.manner.streams} clients, no fault")
    quiet = await run_phase(stage, None, 0)
    rows = [quiet]
    if settings.exact is not True and _only_differs(quiet):
        # Nothing was done to the server: its answers depend on the company they are computed in.
        notes.append(
            "answers under load differ from those without, as low precision allows: only their form is checked "
            "(indices, ends, duplicates); `--exact` counts every difference as wrong"
        )
        stage = replace(stage, references={})
        rows = [await run_phase(stage, None, 0)]
    for fault in faults:
        if not can_run(fault, stage.processes):
            notes.append(f"{fault.name} was left out: it needs {fault.needs.value}")
            continue
        rounds = settings.rounds.get(fault.name, fault.rounds)
        if not rows[-1].ended_well:
            notes.append(f"{fault.name} was left out: the server had not recovered")
            continue
        say(f"{fault.name}, {rounds} times: {fault.told}")
        rows.append(await run_phase(stage, fault, rounds))
    return Findings(rows, notes)


def _only_differs(row: Row) -> bool:
    others = row.tally.count(Outcome.LOST) + row.tally.count(Outcome.DUPLICATED) + len(row.problems)
    return row.tally.count(Outcome.WRONG) > 0 and others == 0


async def _wait_until_well(settings: Settings) -> None:
    deadline = time.monotonic() + settings.manner.patience
    while True:
        try:
            status, _ = await get(settings.place, "/health")
            if status == 200:
                return
            why = f"GET /health: status {status}"
        except BrokenError as broken:
            why = str(broken)
        if time.monotonic() > deadline:
            raise CannotRunError(f"the server is not healthy: {why}")
        await asyncio.sleep(0.5)


def _sizes(info: Mapping[str, object], new_tokens: int) -> Sizes:
    """What the server's limits leave: a word may be several tokens, so prompts take a small part of them."""
    total, prompt = info.get("max_total_tokens"), info.get("max_input_tokens")
    total = total if isinstance(total, int) else 1024
    prompt = prompt if isinstance(prompt, int) else total // 2
    return Sizes(max(1, min(prompt // 8, 60)), max(1, min(new_tokens, total // 3)))


async def _talks(settings: Settings) -> bool:
    """Whether the model takes conversations."""
    ask = Ask(0, Api.CHAT, "hello", 1, None)
    try:
        await take_references(settings.place, [ask], settings.manner.patience)
    except ViolationError:
        return False
    return True
