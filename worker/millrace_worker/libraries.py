"""Pages of shared libraries that were read while these were loaded.

torch brings the libraries of all its devices, whose tables are gone through at import: 200 MiB of a process that
computes on a CPU. They are clean pages of files: the system would take them back when it is short of memory, and until
then they count as this process's own. What is still needed is mapped again when it is used.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Linux, madvise(2).
MADV_DONTNEED = 4
# A mapping as /proc/PID/smaps begins it: first and last address, permissions, offset, device, inode, file if any. Then
# come its figures, in KiB.
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)$")
LIBRARY = re.compile(r"\.so(\.[0-9.]+)?( \(deleted\))?$")
FIGURE = re.compile(r"^(\w+): +(\d+) kB$")


@dataclass(frozen=True)
class Mapping:
    first: int
    end: int
    permissions: str
    file: str
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def is_clean_library(self) -> bool:
        """Nobody can write to it, and no page differs from its file, in memory or swapped out: constants that the
        loader has relocated cannot be read again. Some systems tell zeros only, and so nothing."""
        is_library = self.file.startswith("/") and LIBRARY.search(self.file) is not None
        is_read_only = "w" not in self.permissions and self.permissions.endswith("p")
        rss, changed = self.figures.get("Rss", 0), [self.figures.get(name) for name in ("Anonymous", "Swap")]
        return is_library and is_read_only and rss > 0 and changed == [0, 0]


def give_back_pages(smaps: Path = Path("/proc/self/smaps")) -> None:
    """Of all shared libraries. Does nothing where the system tells no mappings. While it runs no other thread may load
    a library, whose mapping would be looked at half made, or unload one, whose place others could take."""
    try:
        told = smaps.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for mapping in mappings(told):
        if mapping.is_clean_library:
            madvise(mapping.first, mapping.end - mapping.first, MADV_DONTNEED)


def mappings(smaps: str) -> Iterator[Mapping]:
    current: Mapping | None = None
    for line in smaps.split("\n"):
        figure = FIGURE.match(line)
        if figure is not None and current is not None:
            current.figures[figure[1]] = int(figure[2])
            continue
        begun = MAPPING.match(line)
        if begun is not None:
            if current is not None:
                yield current
            first, end, permissions, file = begun.groups()
            current = Mapping(int(first, 16), int(end, 16), permissions, file)
    if current is not None:
        yield current
