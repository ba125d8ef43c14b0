"""How this process ends when something keeps it from ending in order."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import NoReturn


def leave(status: int, message: str = "") -> NoReturn:
    """Ends the process now: neither a load nor a collective that still waits in another thread may hold it."""
    with contextlib.suppress(OSError):  # when the launcher is gone, nobody reads either stream
        if message:
            print(f"Error: {message}", file=sys.stderr)  # noqa: T201 - the launcher shows the last lines of stderr
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
