"""What is kept of a group whose rank hung: the router's report and what each rank wrote last, its stacks among it.

Neither holds text of a request: the router's report is figures, and stacks name files, lines and functions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from millrace_launcher.health import Hang

# The files of one launcher: older ones make room, so that a fault that comes again and again does not fill the disk.
MAX_FILES = 10


class DumpFolder:
    """Writes reports into `folder`, which is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0

    def write(self, hang: Hang, last_words: Mapping[int, Sequence[str]]) -> Path:
        """`last_words`: the latest lines on stderr of each rank. Raises OSError where nothing can be written."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"millrace-hang-{os.getpid()}-{self._written % MAX_FILES}.txt"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        parts = [f"{now} rank {hang.rank} of group {hang.generation} hung: {hang.reason}", "", hang.report]
        for rank, lines in sorted(last_words.items()):
            parts += [f"--- stderr of rank {rank}, its last {len(lines)} lines", *lines, ""]
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("\n".join(parts) + "\n")
        self._written += 1
        return path
