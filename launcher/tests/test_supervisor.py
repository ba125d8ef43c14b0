"""The supervisor as pictures: one line per event, `time event | actions`, and properties over random lives.

Children are written `router`, and `1.0` for rank 0 of generation 1. What the supervisor says is left out of pictures.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millrace_launcher.actions import (
    ROUTER,
    Action,
    AnnounceReady,
    AskStacks,
    ChildId,
    Exit,
    KeepDump,
    Kill,
    Say,
    StartRouter,
    StartWorkers,
    TellEnd,
    Terminate,
)
from millrace_launcher.errors import Variant
from millrace_launcher.failures import MAX_FAILURES_IN_A_ROW, Work, backoff_seconds
from millrace_launcher.supervisor import (
    CUT,
    DRAIN_WITHOUT_WORKERS_SECONDS,
    HEALTHY_SECONDS,
    KILL_SECONDS,
    ROUTER_END_SECONDS,
    STACKS_SECONDS,
    WORKER_TERMINATION_SECONDS,
    Stage,
    Supervisor,
)

TIMEOUT, LONGEST_WAIT = 90.0, 4.0


def drawn(child: ChildId) -> str:
    return "router" if child == ROUTER else f"{child.generation}.{child.rank}"


def child_of(text: str) -> ChildId:
    if text == "router":
        return ROUTER
    generation, rank = text.split(".")
    return ChildId(int(rank), int(generation))


def drawn_action(action: Action) -> str | None:
    match action:
        case StartRouter():
            text = "start router"
        case StartWorkers(generation):
            text = f"start workers {generation}"
        case Terminate(child):
            text = f"term {drawn(child)}"
        case Kill(child):
            text = f"kill {drawn(child)}"
        case AskStacks(child):
            text = f"stacks {drawn(child)}"
        case TellEnd():
            text = "tell the end"
        case KeepDump(child):
            text = f"dump {drawn(child)}"
        case AnnounceReady():
            text = "ready"
        case Exit(failure, _, status):
            text = f"exit {failure.value if failure else status}"
        case Say():
            text = None
    return text


def play(supervisor: Supervisor, event: str, now: float) -> list[Action]:
    match event.split():
        case ["begin"]:
            return supervisor.begin(now)
        case ["gone", child, *status]:
            return supervisor.child_exited(child_of(child), "exit status 1", now, int("".join(status) or 1))
        case ["hangs", child]:
            return supervisor.rank_hangs(child_of(child), "silent", now)
        case ["healthy" | "unhealthy" as health]:
            return supervisor.health(health == "healthy", now)
        case ["stop"]:
            return supervisor.stop_requested(now)
    return play_without_a_child(supervisor, event, now)


def play_without_a_child(supervisor: Supervisor, event: str, now: float) -> list[Action]:
    match event.split():
        case ["tick"]:
            return supervisor.tick(now)
        case ["blamed", blamed, "steps", steps]:
            return supervisor.work_seen(Work(int(blamed), int(steps)), now)
        case ["router", "works" | "silent" as sign]:
            return supervisor.router_looked_at(sign == "works", now)
        case ["fetch"]:
            return supervisor.begin_fetching(now)
        case ["fetched"]:
            return supervisor.fetched(now)
        case ["fetch", "failed"]:
            return supervisor.fetch_failed(Variant.DOWNLOAD, "no such model", now)
    raise ValueError(event)


def check(picture: str, num_shard: int = 2) -> Supervisor:
    """Plays a picture and compares every line; the supervisor is returned as it ends."""
    supervisor = Supervisor(num_shard, TIMEOUT, LONGEST_WAIT)
    for line in picture.strip().splitlines():
        event, _, expected = line.strip().partition("|")
        time, _, event = event.strip().partition(" ")
        actions = play(supervisor, event.strip(), float(time))
        shown = ", ".join(text for text in map(drawn_action, actions) if text)
        assert shown == expected.strip(), line
    return supervisor


def test_a_life_without_trouble() -> None:
    check("""
        0 begin       | start workers 1, start router
        1 unhealthy   |
        2 healthy     | ready
        9 stop        | term router
        10 gone router 0 | term 1.0, term 1.1
        11 gone 1.1   |
        12 gone 1.0   | exit 0
    """)


def test_a_model_that_is_not_there_is_fetched_while_the_router_tells_of_it() -> None:
    check("""
        0 fetch       | start router
        3 fetched     | start workers 1
        4 healthy     | ready
    """)


@pytest.mark.parametrize(
    ("event", "end"),
    [("fetch failed", "exit DownloadError"), ("stop", "exit 0"), ("gone router", "exit WebserverFailed")],
)
def test_what_ends_a_fetch_ends_everything_and_starts_no_worker(event: str, end: str) -> None:
    if event == "gone router":
        check(f"""
            0 fetch       | start router
            1 gone router | {end}
            2 fetched     |
        """)
    else:
        check(f"""
            0 fetch       | start router
            1 {event}     | term router
            2 fetched     |
            3 gone router | {end}
            4 fetch failed |
        """)


def test_a_worker_that_ends_while_starting_ends_everything() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 gone 1.1     | term 1.0, term router
        2 gone router  |
        3 gone 1.0     | exit ShardCannotStart
    """)


def test_a_router_that_ends_while_starting_ends_everything() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 gone router  | term 1.0, term 1.1
        2 gone 1.0     |
        2 gone 1.1     | exit WebserverFailed
    """)


def test_a_router_that_ends_while_serving_is_started_again_and_the_workers_stay() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 gone router  | start router
        9 gone router  |
        10 tick        | start router
        12 healthy     |
        18 healthy     |
        20 gone router | start router
        21 gone router |
        21 stop        | term 1.0, term 1.1
        22 gone 1.0    |
        22 gone 1.1    | exit 3
    """)


def test_a_router_that_ends_again_and_again_ends_everything() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 gone router  | start router
        3 gone 1.0     | kill 1.1
        3 gone 1.1     |
        4 tick         | start workers 2
        5 gone router  |
        7 tick         | start router
        8 gone router  |
        12 tick        | start router
        13 gone router | term 2.0, term 2.1
        14 gone 2.0    |
        14 gone 2.1    | exit WebserverFailed
    """)


def test_a_router_that_was_asked_to_drain_by_somebody_else_ends_everything_in_order() -> None:
    for status in (0, CUT):
        check(f"""
            0 begin                 | start workers 1, start router
            1 healthy               | ready
            2 gone router {status}  | term 1.0, term 1.1
            2 gone 1.0 0            |
            2 gone 1.1 0            | exit {status}
        """)


def test_a_lost_rank_takes_its_group_along_and_a_new_group_starts_when_all_are_gone() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        5 gone 1.1     | kill 1.0
        5.2 tick       |
        6 gone 1.0     | start workers 2
        7 unhealthy    |
        8 healthy      |
        20 gone 2.0    | kill 2.1
        20 gone 2.1    |
        20.9 tick      |
        21 tick        | start workers 3
    """)


def test_health_for_a_while_forgives_earlier_failures() -> None:
    supervisor = check(
        """
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 gone 1.0     | start workers 2
        4 healthy      |
        8.9 healthy    |
    """,
        num_shard=1,
    )
    assert supervisor.failures.in_a_row == 1
    assert supervisor.wants_health
    supervisor.health(True, 4 + HEALTHY_SECONDS)
    assert supervisor.failures.in_a_row == 0
    assert not supervisor.wants_health


def test_health_that_breaks_off_does_not_forgive() -> None:
    supervisor = check(
        """
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 gone 1.0     | start workers 2
        4 healthy      |
        6 unhealthy    |
        8 healthy      |
        12 healthy     |
    """,
        num_shard=1,
    )
    assert supervisor.failures.in_a_row == 1


def test_what_a_router_says_just_after_the_loss_is_about_the_old_workers() -> None:
    supervisor = Supervisor(1, TIMEOUT, LONGEST_WAIT)
    supervisor.begin(0)
    supervisor.health(True, 1)
    supervisor.child_exited(ChildId(0, 1), "killed by SIGKILL", 2)
    assert supervisor.health(True, 2.1) == []
    (said,) = supervisor.health(True, 4)
    assert isinstance(said, Say)
    assert "2.0 s" in said.message


def test_it_knows_since_when_it_waits() -> None:
    supervisor = Supervisor(1, TIMEOUT, LONGEST_WAIT)
    supervisor.begin(3)
    assert supervisor.waiting_since == 3
    supervisor.health(True, 5)
    assert supervisor.waiting_since is None
    supervisor.child_exited(ChildId(0, 1), "killed by SIGKILL", 7)
    supervisor.health(False, 20)
    assert supervisor.waiting_since == 7
    supervisor.health(True, 30)
    assert supervisor.waiting_since is None
    supervisor.stop_requested(31)
    assert supervisor.waiting_since is None


def test_a_rank_that_survives_its_kill_ends_everything() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 gone 1.0     | kill 1.1
        11.9 tick      |
        12 tick        | tell the end, term router
        13 gone router |
        18 tick        | exit ShardFailed
    """)


def test_a_router_that_does_not_drain_in_time_is_killed() -> None:
    check(f"""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 stop         | term router
        {91.9 + ROUTER_END_SECONDS} tick |
        {92 + ROUTER_END_SECONDS} tick   | kill router
        99 gone router | term 1.0, term 1.1
        99 gone 1.0    |
        {99 + WORKER_TERMINATION_SECONDS} tick | kill 1.1
        105 gone 1.1   | exit {CUT}
    """)


@pytest.mark.parametrize("status", [1, -9, CUT])
def test_a_router_that_does_not_end_well_while_it_drains_has_cut_requests(status: int) -> None:
    check(f"""
        0 begin                | start workers 1, start router
        1 healthy              | ready
        2 stop                 | term router
        3 gone router {status} | term 1.0, term 1.1
        4 gone 1.1             |
        4 gone 1.0             | exit {CUT}
    """)


def test_a_rank_that_hangs_is_asked_for_its_stacks_and_replaced_with_its_group() -> None:
    check(f"""
        0 begin         | start workers 1, start router
        1 healthy       | ready
        9 hangs 1.1     | stacks 1.0, stacks 1.1
        9.2 hangs 1.1   |
        {9 + STACKS_SECONDS} tick | dump 1.1, kill 1.0, kill 1.1
        9.6 hangs 1.1   |
        9.7 gone 1.1    |
        9.8 gone 1.0    | start workers 2
        9.9 hangs 1.1   |
        10 hangs 0.0    | stacks 2.0, stacks 2.1
        10.1 gone 2.1   | kill 2.0
        10.2 gone 2.0   |
        11.2 tick       | start workers 3
        12 stop         | term router
        12.5 hangs 3.0  | stacks 3.0, stacks 3.1
        13 tick         | dump 3.0, kill 3.0, kill 3.1
        13 gone 3.0     |
        13 gone router 0 |
        13 gone 3.1     | exit 0
    """)


def test_a_rank_that_hangs_while_it_starts_ends_everything() -> None:
    check("""
        0 begin         | start workers 1, start router
        40 hangs 1.0    | stacks 1.0, stacks 1.1
        40.5 tick       | dump 1.0, term 1.0, term 1.1, term router
        41 gone 1.1     |
        41 gone router  |
        45.5 tick       | kill 1.0
        46 gone 1.0     | exit ShardCannotStart
    """)


def test_a_second_stop_kills_at_once() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 stop         | term router
        3 stop         | kill 1.0, kill 1.1, kill router
        4 stop         |
        4 gone 1.0     |
        4 gone router  |
        4 gone 1.1     | exit 4
    """)


def test_a_stop_that_is_delivered_twice_is_one_stop() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 stop         | term router
        2.01 stop      |
        2.9 stop       |
        3 stop         | kill 1.0, kill 1.1, kill router
    """)


def test_a_group_lost_while_draining_is_restarted_because_running_requests_need_it() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 stop         | term router
        3 gone 1.0     | kill 1.1
        4 gone 1.1     | start workers 2
        9 gone router 0 | term 2.0, term 2.1
        9 gone 2.0     |
        9 gone 2.1     | exit 0
    """)


def test_groups_that_keep_dying_cut_draining_short() -> None:
    supervisor = Supervisor(1, TIMEOUT, LONGEST_WAIT)
    supervisor.begin(0)
    supervisor.health(True, 0)
    supervisor.stop_requested(1)
    now = 1.0
    for generation in range(1, MAX_FAILURES_IN_A_ROW + 1):
        now += 10
        supervisor.tick(now)
        supervisor.child_exited(ChildId(0, generation), "exit status 1", now)
    assert supervisor.generation == MAX_FAILURES_IN_A_ROW
    assert Kill(ROUTER) in supervisor.tick(now + DRAIN_WITHOUT_WORKERS_SECONDS)
    assert supervisor.child_exited(ROUTER, "killed", now + 6)[-1] == Exit(
        Variant.SHARD_FAILED, "rank 0 ended: exit status 1; 5 failures in a row, no further restart"
    )


def test_a_child_that_survives_every_kill_does_not_hold_the_launcher() -> None:
    supervisor = check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 stop         | term router
        3 stop         | kill 1.0, kill 1.1, kill router
        4 gone router  |
        4 gone 1.0     |
        12.9 tick      |
        13 tick        | exit 4
    """)
    assert supervisor.alive == {ChildId(1, 1)}


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (6, 16), (7, 30), (50, 30)])
def test_backoff(failures: int, seconds: float) -> None:
    assert backoff_seconds(failures, 30) == seconds
    assert backoff_seconds(failures, 0) == 0


class World:
    """Children that obey: what is killed or terminated goes some events later. Checks the invariants at each step."""

    def __init__(self, num_shard: int) -> None:
        self.supervisor = Supervisor(num_shard, TIMEOUT, LONGEST_WAIT)
        self.num_shard = num_shard
        self.now = 0.0
        self.alive: set[ChildId] = set()
        self.doomed: set[ChildId] = set()
        self.killed: set[ChildId] = set()
        self.exit: Exit | None = None
        self.starts = 0
        self.take(self.supervisor.begin(0.0))

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.exit is None, "an action after the exit"
            match action:
                case StartRouter():
                    self.alive.add(ROUTER)
                case StartWorkers(generation):
                    assert not self.alive - {ROUTER}, "a group starts while an older one lives"
                    self.alive |= {ChildId(rank, generation) for rank in range(self.num_shard)}
                    self.starts += 1
                case Terminate(child) | Kill(child):
                    assert child in self.alive, "a signal for a child that is gone"
                    self.doomed.add(child)
                    if isinstance(action, Kill):
                        self.killed.add(child)
                case Exit():
                    self.exit = action
                    assert not self.alive, "the launcher ends before its children"
                case _:
                    pass
        assert self.exit is not None or self.supervisor.alive == self.alive

    def advance(self, seconds: float) -> None:
        """Time passes: what was killed is gone before, what was asked to end may take its time."""
        for child in sorted(self.killed & self.alive, key=str):
            self.lose(child)
        if self.exit is not None:
            return
        self.now += seconds
        self.take(self.supervisor.tick(self.now))

    def lose(self, child: ChildId) -> None:
        self.alive.discard(child)
        self.doomed.discard(child)
        self.take(self.supervisor.child_exited(child, "exit status 1", self.now))

    def settle(self) -> None:
        """Lets everything doomed go and all deadlines pass."""
        for _ in range(100):
            for child in sorted(self.doomed & self.alive, key=str):
                self.lose(child)
            if self.exit is not None:
                return
            deadline = self.supervisor.next_deadline
            self.advance(0.0 if deadline is None else max(deadline - self.now, 0.0))


EVENTS = st.one_of(
    st.tuples(st.just("advance"), st.floats(0, 20)),
    st.tuples(st.just("health"), st.booleans()),
    st.tuples(st.just("lose"), st.integers(0, 4)),
    st.tuples(st.just("obey"), st.integers(0, 4)),
    st.tuples(st.just("hang"), st.integers(0, 4)),
    st.tuples(st.just("look"), st.booleans()),
    st.tuples(st.just("stop"), st.none()),
)


@settings(max_examples=500, deadline=None)
@given(num_shard=st.integers(1, 3), events=st.lists(EVENTS, max_size=60))
def test_any_life_keeps_the_invariants_and_can_be_ended(
    num_shard: int, events: list[tuple[str, float | bool | int | None]]
) -> None:
    world = World(num_shard)
    stopped = False
    for kind, value in events:
        if world.exit is not None:
            break
        match kind:
            case "advance":
                assert isinstance(value, float)
                # Never past a deadline: the shell wakes up for each.
                deadline = world.supervisor.next_deadline
                world.advance(value if deadline is None else max(min(value, deadline - world.now), 0.0))
            case "health" if world.supervisor.wants_health:
                world.take(world.supervisor.health(bool(value), world.now))
            case "lose" | "obey":
                pool = sorted(world.alive if kind == "lose" else world.doomed & world.alive, key=str)
                if pool:
                    world.lose(pool[int(value or 0) % len(pool)])
            case "hang":
                child = ChildId(int(value or 0), world.supervisor.generation - int(value or 0) // 3)
                world.take(world.supervisor.rank_hangs(child, "silent", world.now))
            case "look":
                world.take(world.supervisor.router_looked_at(bool(value), world.now))
            case "stop":
                stopped = True
                world.take(world.supervisor.stop_requested(world.now))
    if world.exit is None:
        stopped = stopped or world.supervisor.stage in (Stage.STARTING, Stage.SERVING)
        world.take(world.supervisor.stop_requested(world.now))
        world.settle()
    assert world.exit is not None
    assert stopped or world.exit.failure is not None
    assert world.supervisor.stage is Stage.STOPPED


@settings(max_examples=200, deadline=None)
@given(gaps=st.lists(st.floats(0.0, HEALTHY_SECONDS - 1.5), min_size=MAX_FAILURES_IN_A_ROW))
def test_a_group_that_never_stays_healthy_is_started_a_stated_number_of_times(gaps: list[float]) -> None:
    world = World(num_shard=2)
    world.take(world.supervisor.health(True, 0.0))
    for gap in gaps:
        world.advance(gap)
        world.take(world.supervisor.health(True, world.now))
        victims = sorted(world.alive - {ROUTER}, key=str)
        if not victims or world.supervisor.stage is not Stage.SERVING:
            break
        world.lose(victims[0])
        world.lose(victims[1])
        world.advance(backoff_seconds(world.supervisor.failures.in_a_row, LONGEST_WAIT))
    assert world.starts == MAX_FAILURES_IN_A_ROW
    world.settle()
    assert world.exit is not None
    assert world.exit.failure is Variant.SHARD_FAILED


def test_kill_time_is_longer_than_any_wait_between_restarts() -> None:
    assert backoff_seconds(MAX_FAILURES_IN_A_ROW - 1, math.inf) < KILL_SECONDS
