"""What a start is at before there are workers: said to the router, which says it to whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Report:
    """In words and, where that can be counted, in bytes; `total` 0: it cannot."""

    words: str
    done: int = 0
    total: int = 0


Say = Callable[[Report], None]


def unheard(_report: Report) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Download:
    """Files of one commit on their way into the hub's cache: `sizes` in bytes, by name."""

    repository: Path
    commit: str
    sizes: Mapping[str, int]

    def report(self) -> Report:
        """Read from the cache's folders, which are the hub library's interface; its progress bars are not."""
        snapshot = self.repository / "snapshots" / self.commit
        there = [name for name in self.sizes if (snapshot / name).exists()]
        total = sum(self.sizes.values())
        done = min(sum(self.sizes[name] for name in there) + self._unfinished(), total)
        counted = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total >= 1e9 else f"{done >> 20} of {total >> 20} MiB"
        return Report(f"downloading {len(there)} of {len(self.sizes)} files, {counted}", done, total)

    def _unfinished(self) -> int:
        total = 0
        for path in (self.repository / "blobs").glob("*.incomplete"):
            try:
                total += path.stat().st_size
            except OSError:
                continue  # finished in this moment
        return total


@contextmanager
def told(download: Download, say: Say) -> Iterator[None]:
    """Says how far the download is, twice a second, until it is over."""
    over = threading.Event()

    def look() -> None:
        while True:
            say(download.report())
            if over.wait(_LOOK_SECONDS):
                return

    looking = threading.Thread(target=look, name="progress", daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
