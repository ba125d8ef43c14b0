"""When failures in a row end everything, and when they do not, because somebody is to blame or work gets done."""

from __future__ import annotations

from millrace_launcher.actions import ROUTER, ChildId, StartWorkers
from millrace_launcher.failures import MAX_FAILURES_IN_A_ROW, MAX_PARDONS, Work
from millrace_launcher.supervisor import STACKS_SECONDS, Stage, Supervisor

from launcher.tests.test_supervisor import LONGEST_WAIT, TIMEOUT, check


def test_failures_without_health_between_them_wait_longer_and_then_end_everything() -> None:
    supervisor = check(
        """
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 gone 1.0     | start workers 2
        3 gone 2.0     |
        4 tick         | start workers 3
        5 gone 3.0     |
        6.9 tick       |
        7 tick         | start workers 4
        8 gone 4.0     |
        12 tick        | start workers 5
        13 gone 5.0    | tell the end, term router
        14 gone router | exit ShardFailed
    """,
        num_shard=1,
    )
    assert supervisor.failures.in_a_row == MAX_FAILURES_IN_A_ROW


def test_as_many_requests_as_there_are_may_kill_the_workers_if_each_is_found() -> None:
    supervisor = check(
        """
        0 begin              | start workers 1, start router
        1 healthy            | ready
        2 gone 1.0           | start workers 2
        2.5 blamed 7 steps 9 |
        3 gone 2.0           |
        4 tick               | start workers 3
        5 gone 3.0           |
        5.5 blamed 8 steps 9 |
        7 tick               | start workers 4
        8 gone 4.0           | start workers 5
        8.5 blamed 9 steps 9 |
        9 gone 5.0           | start workers 6
        9.5 blamed 10 steps 9 |
        10 gone 6.0          | start workers 7
        11 healthy           |
        16 healthy           |
    """,
        num_shard=1,
    )
    assert (supervisor.failures.in_a_row, supervisor.wants_work) == (0, False)


def test_workers_that_compute_between_their_deaths_are_brought_back_after_longer_and_longer_waits() -> None:
    supervisor = Supervisor(1, TIMEOUT, LONGEST_WAIT)
    supervisor.begin(0)
    supervisor.health(True, 1)
    now = 1.0
    for death in range(1, 4 * MAX_FAILURES_IN_A_ROW):
        supervisor.child_exited(ChildId(0, death), "exit status 1", now)
        supervisor.work_seen(Work(num_steps=death), now)
        assert supervisor.failures.in_a_row == death
        now += LONGEST_WAIT
        assert StartWorkers(death + 1) in supervisor.tick(now) or death == 1
    for death in range(4 * MAX_FAILURES_IN_A_ROW, 5 * MAX_FAILURES_IN_A_ROW):
        supervisor.child_exited(ChildId(0, death), "exit status 1", now)
        now += LONGEST_WAIT
        supervisor.tick(now)
    assert supervisor.stage is Stage.DRAINING, "without a step between them"


def test_a_device_that_kills_whatever_is_computed_is_given_up_though_each_request_looks_guilty() -> None:
    supervisor = Supervisor(1, TIMEOUT, LONGEST_WAIT)
    supervisor.begin(0)
    supervisor.health(True, 1)
    now, deaths = 1.0, 0
    while supervisor.stage is Stage.SERVING:
        deaths += 1
        supervisor.child_exited(ChildId(0, deaths), "killed by SIGSEGV", now)
        supervisor.work_seen(Work(num_blamed=deaths, num_steps=5), now)
        now += LONGEST_WAIT
        supervisor.tick(now)
    # The first look only says where the counters stand.
    assert deaths == 1 + MAX_PARDONS + MAX_FAILURES_IN_A_ROW


def test_a_device_that_fails_every_step_is_given_up_though_each_group_blames_a_request() -> None:
    supervisor = Supervisor(1, TIMEOUT, LONGEST_WAIT)
    supervisor.begin(0)
    supervisor.health(True, 1)
    now, groups = 1.0, 0
    while supervisor.stage is Stage.SERVING:
        groups += 1
        if supervisor.wants_work:
            supervisor.work_seen(Work(num_blamed=groups + 2, num_steps=5), now)
        supervisor.rank_hangs(ChildId(0, groups), "every step fails", now, every_step_fails=True)
        supervisor.tick(now + STACKS_SECONDS)
        supervisor.child_exited(ChildId(0, groups), "killed by SIGKILL", now + 1)
        supervisor.work_seen(Work(num_blamed=groups + 2, num_steps=5), now + 1)
        now += LONGEST_WAIT
        supervisor.tick(now)
    assert groups == MAX_FAILURES_IN_A_ROW


def test_a_request_is_found_guilty_again_once_a_suspected_device_has_computed_a_step() -> None:
    supervisor = Supervisor(1, TIMEOUT, LONGEST_WAIT)
    supervisor.begin(0)
    supervisor.health(True, 1)
    supervisor.rank_hangs(ChildId(0, 1), "every step fails", 2, every_step_fails=True)
    supervisor.tick(2 + STACKS_SECONDS)
    supervisor.child_exited(ChildId(0, 1), "killed by SIGKILL", 3)
    for blamed, steps, in_a_row in [(3, 5, 1), (4, 5, 1), (4, 6, 1), (5, 6, 0)]:
        supervisor.work_seen(Work(blamed, steps), 4)
        assert supervisor.failures.in_a_row == in_a_row, (blamed, steps)


def test_a_new_routers_counters_begin_anew() -> None:
    supervisor = Supervisor(1, TIMEOUT, LONGEST_WAIT)
    supervisor.begin(0)
    supervisor.health(True, 1)
    supervisor.child_exited(ChildId(0, 1), "exit status 1", 2)
    supervisor.work_seen(Work(num_blamed=90, num_steps=90), 2.5)
    supervisor.child_exited(ROUTER, "exit status 1", 3)
    supervisor.tick(4)
    supervisor.work_seen(Work(num_blamed=0, num_steps=4), 5)
    assert supervisor.failures.fruitless == 1
    supervisor.work_seen(Work(num_blamed=1, num_steps=4), 6)
    assert supervisor.failures.in_a_row == 0
