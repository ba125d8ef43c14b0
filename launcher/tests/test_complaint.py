"""The line of a child's output that is taken for the reason of its end."""

from __future__ import annotations

import json

import pytest
from millrace_launcher.complaint import MAX_REASON_CHARACTERS, Complaint

TIME = "2026-01-02T03:04:05.678901Z"


def reason(*lines: str) -> str | None:
    """Each line begins with `out ` or `err `, the stream it comes on."""
    complaint = Complaint()
    for line in lines:
        stream, _, text = line.partition(" ")
        complaint.notice({"out": "stdout", "err": "stderr"}[stream], text)
    return complaint.reason


def record(level: str, message: str, **fields: str) -> str:
    return "out " + json.dumps({"timestamp": TIME, "level": level, "message": message, **fields})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["out plain text about an ERROR", "err ", record("WARN", "ERROR is only a word here")], None),
        (["err Error: one", "err Error: two", "err for more, try --help"], "two"),
        (
            ["err error: unexpected argument '--x' found", "err ", "err Usage: router"],
            "unexpected argument '--x' found",
        ),
        ([record("ERROR", "loading failed", error="no cheese")], "loading failed: no cheese"),
        (["err Error: cannot load", record("ERROR", "loading failed")], "cannot load"),
        ([record("ERROR", "said on stdout"), "err a warning of some library"], "said on stdout"),
        (
            ["err Traceback (most recent call last):", "err ModuleNotFoundError: No module"],
            "ModuleNotFoundError: No module",
        ),
        ([f"out {TIME} ERROR millrace_router: router/src/main.rs:25: no: really"], "no: really"),
        (
            [f"out {TIME} ERROR request{{id=a: b}}: millrace_router::http: router/src/http/mod.rs:7: no"],
            "no",
        ),
        ([f"out {TIME}  INFO millrace_router: router/src/main.rs:25: ERROR"], None),
        (["out {ERROR"], None),
        (['out {"level": "ERROR"}'], None),
        ([record("ERROR", "several\nlines\n  of it")], "several lines of it"),
    ],
)
def test_the_reason(lines: list[str], expected: str | None) -> None:
    assert reason(*lines) == expected


def test_a_reason_is_never_longer_than_a_line_should_be() -> None:
    found = reason("err Error: " + "x" * 5000)
    assert found is not None
    assert len(found) == MAX_REASON_CHARACTERS
    assert found.endswith("x…")
