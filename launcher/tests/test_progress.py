"""What a start is said to wait for."""

from __future__ import annotations

from millrace_launcher.progress import Progress


def test_each_rank_is_named_with_what_it_is_at() -> None:
    progress = Progress(4)
    assert progress.waiting_for() == "ranks 0, 1, 2, 3 are starting"
    progress.notice(1, {"start_ms": 1})
    progress.notice(2, {"start_ms": 1, "import_ms": 2})
    progress.notice(3, {"start_ms": 1, "import_ms": 2, "load_ms": 3})
    first, second, third, fourth = progress.waiting_for().split("; ")
    assert first == "rank 0 is starting"
    assert second == "rank 1 is importing libraries"
    assert third == "rank 2 is loading the weights"
    assert fourth.startswith("rank 3 is loaded")


def test_when_all_ranks_are_prepared_it_is_the_router_that_is_missing_until_a_restart() -> None:
    progress = Progress(2)
    for rank in range(2):
        progress.notice(rank, {"start_ms": 1, "import_ms": 2, "load_ms": 3, "prepare_ms": 4})
    assert "the router does not answer" in progress.waiting_for()
    progress.restart()
    assert "ranks 0, 1" in progress.waiting_for()


def test_the_summary_holds_what_rank_0_has_said() -> None:
    progress = Progress(2)
    assert progress.summary() == ""
    progress.notice(0, {"dtype": "bfloat16", "device": "cuda", "else": 1})
    progress.notice(0, {"pool_tokens": 4096, "max_sequence_tokens": 2048})
    progress.notice(1, {"device": "other"})
    assert progress.summary() == ", device cuda, dtype bfloat16, KV cache tokens 4096, longest sequence 2048"
