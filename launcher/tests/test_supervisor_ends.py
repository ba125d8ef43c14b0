"""Pictures of the supervisor, as in `test_supervisor`: ends in which both router and workers have a part."""

from __future__ import annotations

from launcher.tests.test_supervisor import check


def test_workers_given_up_while_the_router_is_away_end_everything_at_once() -> None:
    check(
        """
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 gone router  | start router
        3 gone 1.0     |
        4 tick         | start workers 2
        5 gone 2.0     |
        7 tick         | start workers 3
        8 gone router  |
        9 gone 3.0     | exit ShardFailed
    """,
        num_shard=1,
    )


def test_a_stop_while_the_router_is_away_ends_the_workers() -> None:
    check("""
        0 begin        | start workers 1, start router
        1 healthy      | ready
        2 gone router  | start router
        3 gone router  |
        3.5 stop       | term 1.0, term 1.1
        4 gone 1.0     |
        4 gone 1.1     | exit 3
    """)


def test_a_stop_while_the_model_is_fetched_ends_all_at_once() -> None:
    check("""
        0 fetch        | start router
        1 stop         | term router
        6 tick         | kill router
        7 gone router  | exit 0
    """)


def test_a_stop_before_the_first_look_drains_a_router_that_may_serve_already() -> None:
    """It has workers until its requests have ended, and they are replaced; then all is as after any stop."""
    check("""
        0 begin         | start workers 1, start router
        1 stop          | term router
        1.1 healthy     |
        5 gone 1.1      | kill 1.0
        6 gone 1.0      | start workers 2
        9 gone router 0 | term 2.0, term 2.1
        9 gone 2.0      |
        9 gone 2.1      | exit 0
    """)
    check("""
        0 begin         | start workers 1, start router
        1 stop          | term router
        9 gone router 3 | term 1.0, term 1.1
        9 gone 1.0      |
        9 gone 1.1      | exit 3
    """)


def test_a_router_that_dies_of_the_signal_to_stop_has_served_nobody() -> None:
    check("""
        0 begin           | start workers 1, start router
        1 stop            | term router
        1 gone router -15 | term 1.0, term 1.1
        2 gone 1.0        |
        2 gone 1.1        | exit 0
    """)


def test_a_router_that_was_asked_to_drain_before_it_served_ends_everything_in_order() -> None:
    check("""
        0 begin         | start workers 1, start router
        1 gone router 0 | term 1.0, term 1.1
        2 gone 1.0 0    |
        2 gone 1.1 0    | exit 0
    """)
    check("""
        0 fetch         | start router
        1 gone router 0 | exit 0
        2 fetched       |
    """)


def test_a_router_that_hangs_is_killed_and_another_one_started_as_often_as_it_happens() -> None:
    check("""
        0 begin           | start workers 1, start router
        1 router silent   |
        2 healthy         | ready
        5 router silent   |
        10 router silent  |
        11 router works   |
        16 router silent  |
        21 router silent  |
        26 router silent  | kill router
        26.1 gone router -9 | start router
        26.2 router silent  |
        26.3 router silent  |
        26.4 router silent  |
        36.2 router silent  | kill router
        36.3 gone router -9 |
        36.4 router silent  |
        37.3 tick           | start router
        38 router works     |
        40 stop             | term router
        45 router silent    |
        50 router silent    |
        60 router silent    |
        61 gone router 0    | term 1.0, term 1.1
        61 gone 1.0         |
        61 gone 1.1         | exit 0
    """)
