"""Log records of one rank: JSON lines on stdout, which the launcher re-logs with the rank; plain text on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

LOGGER_NAME = "millrace_worker"

_PYTHON_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}
_LEVEL_NAMES = {10: "DEBUG", 20: "INFO", 30: "WARN", 40: "ERROR", 50: "ERROR"}


def set_up_logs(level: str, *, json_output: bool) -> None:
    """Sends this package's records to stdout; third parties' warnings too. `level` is one of `config.LOG_LEVELS`."""
    handler = logging.StreamHandler(sys.stdout)
    as_text = sys.stdout.isatty() and not json_output
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(LOGGER_NAME).setLevel(_PYTHON_LEVELS[level])


def log(level: int, message: str, **fields: object) -> None:
    """One record with named values beside its message."""
    logging.getLogger(LOGGER_NAME).log(level, message, extra={"fields": fields})


def info(message: str, **fields: object) -> None:
    log(logging.INFO, message, **fields)


def warning(message: str, **fields: object) -> None:
    log(logging.WARNING, message, **fields)


def error(message: str, **fields: object) -> None:
    log(logging.ERROR, message, **fields)


class JsonFormatter(logging.Formatter):
    """{"timestamp", "level", "message", "target", …fields}: one object a line, times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": _LEVEL_NAMES.get(record.levelno, "INFO"),
            "message": _message(self, record),
            "target": record.name,
        }
        fields: dict[str, object] = getattr(record, "fields", {})
        return json.dumps(entry | {name: value for name, value in fields.items() if name not in entry}, default=str)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {})
        pairs = "".join(f" {name}={value}" for name, value in fields.items())
        level = _LEVEL_NAMES.get(record.levelno, "INFO")
        return f"{_timestamp(record)} {level:>5} {record.name}: {_message(self, record)}{pairs}"


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + formatter.formatException(record.exc_info)
    return message
