"""The budget: pure sizing as a table, measuring by causing it, and Prepare as a whole."""

from __future__ import annotations

import mmap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from millrace_worker import memory
from millrace_worker import rank as rank_module
from millrace_worker.config import WorkerConfig
from millrace_worker.engine import EngineParts
from millrace_worker.kv_pool import KvGeometry, KvPool
from millrace_worker.memory import (
    OPEN_ROW_TOKENS,
    UNSEEN_SHARE,
    DoesNotFitError,
    PoolAsk,
    PoolSize,
    RowsAsk,
    RowsSize,
    available_memory,
    bytes_held,
    peak_beyond,
    size_pool,
    size_rows,
)
from millrace_worker.model import paged
from millrace_worker.proto import worker_pb2
from millrace_worker.rank import Identity, NotPreparedError, Rank

from .conftest import POSITIONS
from .plans import PlanBook, read_u32

ASK = PoolAsk(page_size=16, page_bytes=1000, max_rows=4, max_positions=160, max_sequence_tokens=0, max_pool_tokens=0)


@pytest.mark.parametrize(
    ("ask", "room", "exact", "size"),
    [
        (ASK, 15_999, False, PoolSize(15, 160)),
        (ASK, 10**9, False, PoolSize(40, 160)),  # 4 rows of 10 pages: more would never be filled
        (ASK, 10**6, True, PoolSize(1000, 160)),  # asked for: cached prefixes may have the rest
        (replace(ASK, max_pool_tokens=200), 10**9, False, PoolSize(13, 160)),  # a cap in tokens, rounded up to pages
        (ASK, 3_500, False, PoolSize(3, 48)),  # the longest sequence was left open: it shrinks
        (replace(ASK, max_sequence_tokens=48), 3_500, False, PoolSize(3, 48)),
        (replace(ASK, max_sequence_tokens=50), 10**9, False, PoolSize(16, 50)),
        # A window of 33 positions lies in three pages at most: then no sequence is too long.
        (replace(ASK, attention_window=33), 3_500, False, PoolSize(3, 160)),
        (replace(ASK, attention_window=33, max_sequence_tokens=150), 3_500, False, PoolSize(3, 150)),
        (replace(ASK, attention_window=34), 3_500, False, PoolSize(3, 48)),
    ],
)
def test_pool_sizes(ask: PoolAsk, room: int, exact: bool, size: PoolSize) -> None:
    assert size_pool(ask, room, exact=exact) == size


@pytest.mark.parametrize(
    ("ask", "room", "numbers"),
    [
        (replace(ASK, max_sequence_tokens=49), 3_500, ("48 tokens", "3 pages", "49 tokens", "4000 bytes")),
        (replace(ASK, max_sequence_tokens=160, max_pool_tokens=100), 10**9, ("112 tokens", "160 tokens")),
        (ASK, 999, ("0 pages", "1000 bytes")),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(ask: PoolAsk, room: int, numbers: tuple[str, ...]) -> None:
    with pytest.raises(DoesNotFitError) as refused:
        size_pool(ask, room, exact=False)
    assert all(number in str(refused.value) for number in numbers)


def test_a_control_group_limits_what_the_machine_offers(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert available_memory(proc, cgroup) == 5000 * 1024
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("1000\n")
    assert available_memory(proc, cgroup) == 5000 * 1024
    (cgroup / "memory.max").write_text("3001000\n")
    assert available_memory(proc, cgroup) == 3_000_000
    (cgroup / "memory.current").write_text("4000000\n")
    assert available_memory(proc, cgroup) == 0


def test_the_peak_of_a_run_is_seen_although_it_was_freed() -> None:
    def touch_and_free() -> None:
        torch.ones(96 << 18)  # 96 MiB of float32

    peak = peak_beyond(touch_and_free, torch.device("cpu"))
    assert 64 << 20 < peak < 160 << 20  # the system may take pages of libraries away meanwhile


def _touch(num_bytes: int) -> None:
    torch.ones(num_bytes // 4)


@pytest.mark.parametrize("has_mark", [True, False])
def test_where_the_kernel_s_mark_cannot_be_set_back_the_peak_is_sampled_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_mark: bool
) -> None:
    def forbidden(path: Path, _: str) -> int:
        raise PermissionError(f"{path} is read-only")

    monkeypatch.setattr(Path, "write_text", forbidden)
    memory._say_that_peaks_are_sampled.cache_clear()
    real = memory._status_bytes
    if not has_mark:
        monkeypatch.setattr(memory, "_status_bytes", lambda name: 0 if name == "VmHWM" else real(name))
    torch.ones(384 << 18)  # as a load: a mark that nothing behind it reaches

    def touch_and_free() -> None:
        held = torch.ones(96 << 18)
        time.sleep(1)  # on a busy machine who looks may have to wait for its turn
        del held

    for _ in range(2):
        peak = peak_beyond(touch_and_free, torch.device("cpu"))
        assert 64 << 20 < peak < (1 + UNSEEN_SHARE) * (128 << 20)
    beyond = real("VmHWM") - real("VmRSS") + (96 << 20)
    if has_mark:  # seen by the kernel, however short it is
        assert beyond - (32 << 20) < peak_beyond(lambda: _touch(beyond), torch.device("cpu"))
    assert peak_beyond(lambda: None, torch.device("cpu")) < 32 << 20
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "is measured by samples" in caplog.records[0].message


def test_a_pool_takes_memory_only_where_it_is_written() -> None:
    geometry = KvGeometry(num_layers=2, width=1024, page_size=16, dtype=torch.bfloat16, device=torch.device("cpu"))
    before = bytes_held(geometry.device)
    pool = KvPool(geometry, num_pages=(256 << 20) // geometry.page_bytes)
    assert pool.values.nbytes == 256 << 20
    assert bytes_held(geometry.device) - before < 64 << 20
    assert not pool.values[:, ::97].any()
    pool.values.fill_(1)
    assert bytes_held(geometry.device) - before > 192 << 20


ROWS = RowsAsk(row_bytes=lambda _: 1000, max_rows=4, max_positions=1 << 20, max_sequence_tokens=0)
GROWING = replace(ROWS, row_bytes=lambda tokens: 10 * tokens)  # as a cache of keys and values for each row


@pytest.mark.parametrize(
    ("ask", "room", "size"),
    [
        (ROWS, 10**9, RowsSize(4, OPEN_ROW_TOKENS)),  # more rows than are asked for are of no use
        (ROWS, 2_999, RowsSize(2, OPEN_ROW_TOKENS)),
        (replace(ROWS, max_positions=100), 10**9, RowsSize(4, 100)),
        (replace(ROWS, max_sequence_tokens=10**5), 10**9, RowsSize(4, 10**5)),
        (GROWING, 3 * 10 * OPEN_ROW_TOKENS, RowsSize(3, OPEN_ROW_TOKENS)),
        (GROWING, 10 * OPEN_ROW_TOKENS // 3, RowsSize(1, OPEN_ROW_TOKENS // 4)),  # left open: it shrinks
    ],
)
def test_rows_that_fit(ask: RowsAsk, room: int, size: RowsSize) -> None:
    assert size_rows(ask, room) == size


def test_a_row_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(DoesNotFitError, match="500 tokens needs 5000 bytes, but there are 4999"):
        size_rows(replace(GROWING, max_sequence_tokens=500), 4999)


def _rank(parts: EngineParts, path: Path, **options: object) -> Rank:
    config = WorkerConfig(model_path=path, uds_path="unused", **options)  # pyright: ignore[reportArgumentType]
    identity = Identity(architecture="LlamaForCausalLM", dtype=torch.float32, device_name="test", weight_bytes=10**6)
    return Rank(config, parts, identity)


REQUEST = worker_pb2.PrepareRequest(max_rows=4, max_step_tokens=64, max_top_n_tokens=5, prompt_logprobs=True)


def test_prepare_answers_what_rows_and_pool_really_hold(parts: EngineParts, tmp_path: Path) -> None:
    rank = _rank(parts, tmp_path)
    with pytest.raises(NotPreparedError):
        _ = rank.engine
    prepared = rank.prepare(REQUEST)
    page_size = parts.model.page_size
    assert prepared.max_sequence_tokens == POSITIONS
    assert prepared.num_pages == 4 * (POSITIONS // page_size)
    assert prepared.page_bytes == paged(parts.model).page_bytes()
    assert prepared.free_bytes > 0
    assert prepared.trial_tokens == REQUEST.max_step_tokens  # so small a model is tried whole on a CPU, too
    assert 0 < prepared.trial_us < prepared.prepare_us

    # The whole of it can be used: every row filled to its last token.
    book = PlanBook(page_size, prepared.num_pages)
    for row in range(4):
        book.admit(row, [1] * (POSITIONS - 1))
    while book.held[3].computed < POSITIONS - 1:
        for row in range(4):
            book.work(row, 16)
        result = rank.engine.compute(book.plan())
        assert not result.failed, result.failed[0].message
    for row in range(4):
        book.work(row)
    assert read_u32(book.plan().work.starts) == [POSITIONS - 1] * 4
    assert not book.free


def test_the_same_request_again_changes_nothing(parts: EngineParts, tmp_path: Path) -> None:
    rank = _rank(parts, tmp_path)
    prepared, engine = rank.prepare(REQUEST), rank.engine
    assert rank.prepare(worker_pb2.PrepareRequest.FromString(REQUEST.SerializeToString())) == prepared
    assert rank.engine is engine
    other = worker_pb2.PrepareRequest(max_rows=2, max_step_tokens=64)
    assert rank.prepare(other).num_pages == 2 * (POSITIONS // parts.model.page_size)
    assert rank.engine is not engine


def test_libraries_give_their_pages_back_after_each_prepare_that_measures(
    parts: EngineParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    prepared = _rank(parts, tmp_path)
    monkeypatch.setattr(rank_module, "give_back_pages", lambda: given.append(prepared._engine is not None))
    for asked, times in ((REQUEST, 1), (REQUEST, 1), (worker_pb2.PrepareRequest(max_rows=2, max_step_tokens=64), 2)):
        prepared.prepare(asked)
        assert given == [True] * times


def test_pages_of_files_that_come_back_are_not_what_a_step_takes(tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "file").write_bytes(bytes(size))
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        kept: list[torch.Tensor] = []

        def run() -> None:
            assert not any(mapped[:: mmap.PAGESIZE])
            kept.append(torch.ones(size // 4))

        assert size <= peak_beyond(run, torch.device("cpu")) < 1.5 * size


def test_a_prepare_that_fails_leaves_nothing_to_run(
    parts: EngineParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = _rank(parts, tmp_path)
    prepared, engine = rank.prepare(REQUEST), rank.engine

    def no_more(*_: object) -> torch.Tensor:
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(parts.model, "hidden", no_more)
        with pytest.raises(MemoryError):
            rank.prepare(worker_pb2.PrepareRequest(max_rows=2, max_step_tokens=64))
    with pytest.raises(NotPreparedError):
        _ = rank.engine
    assert rank.prepare(REQUEST).num_pages == prepared.num_pages
    assert rank.engine is not engine


def test_a_fixed_pool_is_what_was_asked_for(parts: EngineParts, tmp_path: Path) -> None:
    page_bytes = paged(parts.model).page_bytes()
    prepared = _rank(parts, tmp_path, kv_cache_memory=5 * page_bytes + 1).prepare(REQUEST)
    assert (prepared.num_pages, prepared.max_sequence_tokens) == (5, 5 * parts.model.page_size)
    with pytest.raises(DoesNotFitError, match="--kv-cache-memory"):
        _rank(parts, tmp_path, kv_cache_memory=1 << 60).prepare(REQUEST)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (worker_pb2.PrepareRequest(max_rows=0, max_step_tokens=4), "max_rows"),
        (worker_pb2.PrepareRequest(max_rows=4, max_step_tokens=0), "max_step_tokens"),
        (worker_pb2.PrepareRequest(max_rows=4, max_step_tokens=4, max_sequence_tokens=POSITIONS + 1), "positions end"),
    ],
)
def test_senseless_requests_are_refused(
    parts: EngineParts, tmp_path: Path, request_: worker_pb2.PrepareRequest, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        _rank(parts, tmp_path).prepare(request_)


def test_the_thread_that_prepares_takes_the_ranks_own_device(
    parts: EngineParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread has loaded the weights: without this the second rank's events would be those of the first GPU."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    second = _rank(replace(parts, device=torch.device("cuda", 1)), tmp_path)
    with pytest.raises(ValueError, match="max_rows"):
        second.prepare(worker_pb2.PrepareRequest())
    assert taken == [torch.device("cuda", 1)]
    with pytest.raises(ValueError, match="max_rows"):
        _rank(parts, tmp_path).prepare(worker_pb2.PrepareRequest())
    assert len(taken) == 1
