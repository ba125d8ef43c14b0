"""Log lines in both forms, workers' records, and the timeline of a start."""

from __future__ import annotations

import io
import json
import re

import pytest
from millrace_launcher.logs import Log, Record, level_of, log_from_environment, worker_record
from millrace_launcher.timeline import Timeline

WORKER_LINE = json.dumps(
    {
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "level": "WARN",
        "message": "close to the limit",
        "target": "millrace_worker",
        "used": 3,
    }
)


def written(record: Record, **options: bool) -> str:
    stream = io.StringIO()
    Log(stream, level="TRACE", **options).write(record)
    return stream.getvalue()


def test_text_is_timestamp_level_target_message_fields() -> None:
    line = written(Record("INFO", "started", {"port": 80}))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z  INFO millrace_launcher: started port=80\n", line)


def test_json_has_the_fields_that_log_collectors_read() -> None:
    entry = json.loads(written(Record("ERROR", "no", {"n": 1}), json_output=True))
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"level": "ERROR", "fields": {"message": "no", "n": 1}, "target": "millrace_launcher"}


def test_a_workers_record_keeps_its_time_level_and_fields_and_gains_its_rank() -> None:
    record = worker_record(WORKER_LINE, 3, "stdout")
    assert written(record) == (
        "2026-01-02T03:04:05.678901Z  WARN shard-manager{rank=3}: millrace_worker: close to the limit used=3\n"
    )
    assert json.loads(written(record, json_output=True)) == {
        "timestamp": "2026-01-02T03:04:05.678901Z",
        "level": "WARN",
        "fields": {"message": "close to the limit", "used": 3},
        "target": "millrace_worker",
        "span": {"rank": 3, "name": "shard-manager"},
        "spans": [{"rank": 3, "name": "shard-manager"}],
    }


def test_fields_may_be_nested() -> None:
    record = worker_record('{"level": "info", "message": "m", "fields": {"a": 1}}', 0, "stdout")
    assert (record.level, record.fields) == ("INFO", {"a": 1})


@pytest.mark.parametrize("line", ["plain text", "", "{broken", "[1]", '{"no": "message"}', '{"message": 3}', "null"])
def test_lines_that_are_no_records_are_kept_word_for_word(line: str) -> None:
    assert (worker_record(line, 0, "stdout").message, worker_record(line, 0, "stdout").level) == (line, "DEBUG")
    assert (worker_record(line, 0, "stderr").message, worker_record(line, 0, "stderr").level) == (line, "WARN")


def test_records_on_stderr_are_text() -> None:
    assert worker_record(WORKER_LINE, 0, "stderr").message == WORKER_LINE


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("", "INFO"),
        ("debug", "DEBUG"),
        ("WARN", "WARN"),
        ("warning", "WARN"),
        ("text_generation_router=debug", "INFO"),
        ("tower=debug, error", "ERROR"),
        ("nonsense", "INFO"),
    ],
)
def test_level_of_a_filter(text: str, level: str) -> None:
    assert level_of(text) == level


def test_only_records_of_the_level_are_written() -> None:
    stream = io.StringIO()
    log = Log(stream, level="WARN")
    log.info("not this")
    log.warn("this")
    assert "this" in stream.getvalue()
    assert "not this" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("value", "terminal", "coloured"),
    [("", True, True), ("", False, False), ("1", False, True), ("0", True, False)],
)
def test_colour(value: str, terminal: bool, coloured: bool) -> None:
    stream = Terminal() if terminal else io.StringIO()
    log_from_environment(stream, {"LOG_COLORIZE": value}, json_output=False).info("hello")
    assert ("\x1b[" in stream.getvalue()) == coloured


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_has_gone_stops_nothing() -> None:
    Log(Gone()).info("hello")


def test_the_slowest_rank_counts_in_the_timeline() -> None:
    times = iter([10.0, 10.1, 10.2, 12.0, 13.0, 13.5, 14.0, 14.25])
    timeline = Timeline(lambda: next(times))
    timeline.mark("resolve")
    timeline.mark("fetch")
    timeline.notice({"load_ms": 1})
    timeline.notice({"load_ms": 1, "device": "cpu"})
    timeline.notice({"prepare_ms": 1})
    timeline.notice({"prepare_ms": 1})
    timeline.notice({"something": 1})
    timeline.mark("ready")
    assert timeline.durations() == {
        "resolve": 0.1,
        "fetch": 0.1,
        "load": 2.8,
        "prepare": 1.0,
        "ready": 0.25,
        "total": 4.25,
    }


def test_a_phase_that_was_not_seen_is_left_out() -> None:
    times = iter([0.0, 1.0, 5.0])
    timeline = Timeline(lambda: next(times))
    timeline.mark("resolve")
    timeline.mark("ready")
    assert timeline.durations() == {"resolve": 1.0, "ready": 4.0, "total": 5.0}
