"""The launcher's log, in TGI's two forms: compact text lines, or JSON objects. Children's records go through it too."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from millrace_launcher.outlet import Outlet

TARGET = "millrace_launcher"
_WORKER_TARGET = "millrace_worker"

_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR")
_COLOURS = {"TRACE": "\x1b[35m", "DEBUG": "\x1b[34m", "INFO": "\x1b[32m", "WARN": "\x1b[33m", "ERROR": "\x1b[31m"}
_RESET = "\x1b[0m"


@dataclass(frozen=True)
class Record:
    """One log entry. `span` names what it happened in, for example the rank of a worker."""

    level: str
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    target: str = TARGET
    timestamp: str | None = None
    span: Mapping[str, Any] = field(default_factory=dict)


class Log:
    """Writes records of at least `level` to `stream`, one write per record; safe to use from every thread."""

    def __init__(self, stream: TextIO, *, level: str = "INFO", json_output: bool = False, colour: bool = False) -> None:
        self._outlet = Outlet(stream)
        self._threshold = _LEVELS.index(level)
        self._json = json_output
        self.colour = colour
        self._lock = threading.Lock()

    def debug(self, message: str, **fields: Any) -> None:
        self.write(Record("DEBUG", message, fields))

    def info(self, message: str, **fields: Any) -> None:
        self.write(Record("INFO", message, fields))

    def warn(self, message: str, **fields: Any) -> None:
        self.write(Record("WARN", message, fields))

    def error(self, message: str, **fields: Any) -> None:
        self.write(Record("ERROR", message, fields))

    def write(self, record: Record) -> None:
        if _LEVELS.index(record.level) >= self._threshold:
            self.raw_line(_as_json(record) if self._json else _as_text(record, self.colour))

    def raw_line(self, line: str) -> None:
        """A line that has the right form already, as the router has it. Readers that are gone or hang stop nothing."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._outlet.line(line)


def log_from_environment(stream: TextIO, environment: Mapping[str, str], *, json_output: bool) -> Log:
    """LOG_LEVEL is a level or a filter of the router's; LOG_COLORIZE is 1 or 0, otherwise a terminal gets colour.

    The original had LOG_COLORIZE inverted: 1 switched colour off.
    """
    colour = {"1": True, "true": True, "0": False, "false": False}.get(environment.get("LOG_COLORIZE", "").lower())
    return Log(
        stream,
        level=level_of(environment.get("LOG_LEVEL", "")),
        json_output=json_output,
        colour=stream.isatty() if colour is None else colour,
    )


def level_of(log_level: str) -> str:
    """The plain level in a filter such as `info,tower=debug`; INFO when there is none."""
    names = {"warning": "WARN"} | {name.lower(): name for name in _LEVELS}
    parts = (part.strip().lower() for part in log_level.split(","))
    return next((names[part] for part in parts if part in names), "INFO")


def worker_record(line: str, rank: int, stream: str) -> Record:
    """A worker's line with its rank. Records are JSON on stdout; other text is kept as it came.

    What is not a record is worth a warning on stderr, where Python writes tracebacks, and DEBUG on stdout.
    """
    span = {"rank": rank, "name": "shard-manager"}
    entry = _json_object(line) if stream == "stdout" else None
    if entry is None or not isinstance(entry.get("message"), str):
        return Record("DEBUG" if stream == "stdout" else "WARN", line, target=_WORKER_TARGET, span=span)
    level = str(entry.get("level", "INFO")).upper()
    known = {"timestamp", "level", "message", "target"}
    fields = {name: value for name, value in entry.items() if name not in known}
    nested = fields.get("fields")
    if isinstance(nested, dict):
        fields = {name: value for name, value in fields.items() if name != "fields"} | nested
    return Record(
        level if level in _LEVELS else "INFO",
        entry["message"],
        fields,
        target=str(entry.get("target", _WORKER_TARGET)),
        timestamp=entry.get("timestamp"),
        span=span,
    )


def _json_object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _as_json(record: Record) -> str:
    entry: dict[str, Any] = {
        "timestamp": record.timestamp or _now(),
        "level": record.level,
        "fields": {"message": record.message, **record.fields},
        "target": record.target,
    }
    if record.span:
        entry |= {"span": dict(record.span), "spans": [dict(record.span)]}
    return json.dumps(entry, default=str)


def _as_text(record: Record, colour: bool) -> str:
    level = f"{record.level:>5}"
    if colour:
        level = f"{_COLOURS[record.level]}{level}{_RESET}"
    name = f"{record.span['name']}{{rank={record.span['rank']}}}: " if record.span else ""
    pairs = "".join(f" {key}={value}" for key, value in record.fields.items())
    return f"{record.timestamp or _now()} {level} {name}{record.target}: {record.message}{pairs}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
