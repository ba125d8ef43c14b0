"""Why a child ended, in its own words: the one line of its output that says so."""

from __future__ import annotations

import json
import re

MAX_REASON_CHARACTERS = 600

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_LINE = re.compile(r"error: (?P<message>.+)", re.IGNORECASE)
# The router's text form: time, level, spans and target, file with line, message.
_ERROR_RECORD = re.compile(r"\S+Z\s+ERROR\s+(?:.*?\S+\.rs:\d+: )?(?P<message>.+)")


class Complaint:
    """Follows the output of one child.

    An `Error: …` line on stderr says best why a process ended, then a record of level ERROR on stdout, then whatever
    stood last on stderr, where Python and Rust leave what nobody caught. Of each kind the last one counts. Each stream
    may be read by a thread of its own.
    """

    def __init__(self) -> None:
        self._error_line: str | None = None
        self._error_record: str | None = None
        self._last_line: str | None = None

    def notice(self, stream: str, line: str) -> None:
        """`stream` is "stdout" or "stderr"."""
        if stream == "stdout":
            self._error_record = _message_of_record(line) or self._error_record
        elif line.strip():
            self._last_line = line
            found = _ERROR_LINE.match(_COLOURS.sub("", line))
            self._error_line = found["message"] if found else self._error_line

    @property
    def reason(self) -> str | None:
        """One line of at most `MAX_REASON_CHARACTERS`; None when the child has not complained."""
        text = self._error_line or self._error_record or self._last_line
        if text is None:
            return None
        line = " ".join(text.split())
        return line if len(line) <= MAX_REASON_CHARACTERS else line[: MAX_REASON_CHARACTERS - 1] + "…"


def _message_of_record(line: str) -> str | None:
    """The message of a record of level ERROR, as workers (JSON) and the router (JSON or text) write it."""
    if "ERROR" not in line:
        return None
    if not line.startswith("{"):
        found = _ERROR_RECORD.match(_COLOURS.sub("", line))
        return found["message"] if found else None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if entry.get("level") != "ERROR" or not isinstance(entry.get("message"), str):
        return None
    detail = entry.get("error")
    return f"{entry['message']}: {detail}" if isinstance(detail, str) else entry["message"]
