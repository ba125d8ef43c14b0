"""`millrace chaos` with every fault it knows, against two ranks: nothing is lost, duplicated or wrong. And what the
server says meanwhile of a rank that hangs and of memory that was refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import streams
from conftest import Launch, Server
from millrace_chaos.answer import Outcome
from millrace_chaos.connection import Place
from millrace_chaos.load import Manner
from millrace_chaos.phase import Row
from millrace_chaos.processes import Processes
from millrace_chaos.report import table
from millrace_chaos.run import FAULTS, Settings, run

from . import shows

CLIENTS = {"disconnect": 24, "slow-reader": 8, "hostile": 12}
REPLACED = {"kill": 1, "stop": 1}  # their ranks are
PROCESSES = REPLACED | {"slow-rank": 1, "kill-router": 1, "no-memory": 2}
ROUNDS = CLIENTS | PROCESSES
# It takes less than five, to which `make chaos` holds it; here everybody waits for a core now and then.
SECONDS_TO_NOTICE = 15.0
WORDS_OF_PROMPTS = ("brown", "jumps", "river", "stars", "tonight")


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dumps")


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch, dumps: Path) -> Server:
    flags = ("--num-shard", "2", "--dump-folder", str(dumps))
    return launch_module(checkpoint(), *shows.LIMITS, *flags, **shows.refusing_allocator(dumps.parent))


@pytest.fixture(scope="module")
def step_tokens(server: Server) -> float:
    """How many tokens a step may have before anything has happened."""
    assert server.metric("millrace_out_of_memory_steps_total") == 0
    return server.metric("millrace_step_tokens_allowed")


@pytest.fixture(scope="module")
def rows(server: Server, step_tokens: float) -> dict[str, Row]:
    """What came of each fault."""
    place = Place.of(server.url)
    processes = Processes.behind(place.port)
    assert processes.launcher == server.process.pid
    settings = Settings(
        place,
        tuple(fault.name for fault in FAULTS),
        Manner(streams=16),
        distinct=12,
        new_tokens=60,
        rounds=ROUNDS,
        exact=True,
        processes=processes,
    )
    findings = asyncio.run(run(settings, print))
    print(table(findings.rows), [round(row.seconds, 1) for row in findings.rows])
    assert findings.is_good, table(findings.rows)
    return {row.fault: row for row in findings.rows}


def test_no_fault_costs_a_request(rows: dict[str, Row]) -> None:
    assert {name: row.strikes for name, row in rows.items()} == {"none": 0} | ROUNDS
    for name, row in rows.items():
        assert row.tally.count(Outcome.COMPLETED) > 0
        if name != "kill-router":  # a new one refuses for a moment, or comes before it is missed
            assert row.tally.count(Outcome.REFUSED) == 0
            assert (row.unhealthy_after is not None) == (name in REPLACED)
            assert (row.not_live_after is not None) == (name == "stop")


def test_a_stopped_rank_is_told_soon_and_leaves_what_it_was_doing(
    rows: dict[str, Row], server: Server, dumps: Path
) -> None:
    stopped = rows["stop"]
    assert stopped.unhealthy_after is not None
    assert stopped.not_live_after is not None
    assert max(stopped.unhealthy_after, stopped.not_live_after) < SECONDS_TO_NOTICE
    for route in ("/livez", "/readyz", "/startupz"):
        assert httpx.get(f"{server.url}{route}", timeout=10).status_code == 200
    (dump,) = dumps.iterdir()
    text = dump.read_text()
    assert "has not answered" in text
    assert "scheduler: Stats" in text
    assert "stream.py" in text, "the stacks of the rank that could still be asked"
    assert not [word for word in WORDS_OF_PROMPTS if word in text + server.output()]


def test_memory_that_was_refused_ends_nothing_and_comes_back(
    rows: dict[str, Row], server: Server, step_tokens: float
) -> None:
    """What the router counts began with the router that replaced the killed one, which was the fault before."""
    assert list(rows)[-2:] == ["kill-router", "no-memory"]
    assert server.metric("millrace_out_of_memory_steps_total") > 5
    assert server.metric("millrace_worker_restarts_total") == 0
    for _ in range(30):
        if server.metric("millrace_step_tokens_allowed") == step_tokens:
            break
        streams.crowd_ids(server.url, streams.mixed_requests(32, new_tokens=20))
    assert server.metric("millrace_step_tokens_allowed") == step_tokens
