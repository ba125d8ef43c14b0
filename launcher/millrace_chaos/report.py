"""What a run found: a table for people, an object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from millrace_chaos.answer import Outcome
from millrace_chaos.phase import Row

_COLUMNS = (
    "fault",
    "strikes",
    "sent",
    *(outcome.value for outcome in Outcome),
    "stall s",
    "wait s",
    "unwell s",
    "well s",
)
_LEGEND = (
    "refused: 429 or 503 with Retry-After; cut: by a fault that cuts running streams, which is documented;",
    "stall: longest pause within a stream; wait: longest time to the first piece of an answer;",
    "unwell, well: slowest /health to turn false, and to be true again, after a strike",
)


def table(rows: Sequence[Row]) -> str:
    """Columns padded to their widest cell; problems below."""
    cells = [list(_COLUMNS), *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    lines = [_padded(line, widths) for line in cells]
    lines += ["", *_LEGEND]
    for row in rows:
        lines += [f"{row.fault}: {problem}" for problem in (*row.problems, *row.tally.problems)]
    return "\n".join(lines)


def as_json(rows: Sequence[Row], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "good": all(row.is_good for row in rows),
        "notes": list(notes),
        "phases": [
            {
                "fault": row.fault,
                "strikes": row.strikes,
                "seconds": round(row.seconds, 3),
                "sent": row.tally.sent,
                **{outcome.value: row.tally.count(outcome) for outcome in Outcome},
                "longest_stall_seconds": round(row.tally.longest_stall, 3),
                "longest_wait_seconds": round(row.tally.longest_wait, 3),
                "health_false_after_seconds": _rounded(row.unhealthy_after),
                "livez_false_after_seconds": _rounded(row.not_live_after),
                "health_true_after_seconds": _rounded(row.recovered_after),
                "slowest_health_answer_seconds": round(row.slowest_health, 4),
                "router_resident_bytes": row.router_bytes,
                "problems": [*row.problems, *row.tally.problems],
            }
            for row in rows
        ],
    }


def _cells(row: Row) -> list[str]:
    tally = row.tally
    counts = [row.strikes, tally.sent, *(tally.count(outcome) for outcome in Outcome)]
    times = (tally.longest_stall, tally.longest_wait, row.unhealthy_after, row.recovered_after)
    return [row.fault, *map(str, counts), *("-" if time is None else f"{time:.2f}" for time in times)]


def _padded(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        text.ljust(width) if column == 0 else text.rjust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join([first, *rest])


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
