"""Pages of shared libraries that were read while these were loaded, and never are again.

torch brings the libraries of all its devices, whose tables are gone through at import: 200 MiB of a process that
computes on a CPU. They are clean pages of files, so giving them back loses nothing: what is needed is read again.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

# Linux, madvise(2).
MADV_DONTNEED = 4
# A mapping as /proc/PID/smaps begins it: first and last address, permissions, offset, device, inode, file.
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ +(/.*)$")


def give_back_pages(smaps: Path = Path("/proc/self/smaps")) -> None:
    """Of all shared libraries, from memory to the page cache. Does nothing where the system tells no mappings."""
    try:
        told = smaps.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for first, end in clean_libraries(told):
        madvise(first, end - first, MADV_DONTNEED)


def clean_libraries(smaps: str) -> list[tuple[int, int]]:
    """Addresses of mapped libraries that nobody can write to and in which no page differs from its file: constants that
    the loader has relocated cannot be read again."""
    found: list[tuple[int, int]] = []
    candidate: tuple[int, int] | None = None
    for line in smaps.splitlines():
        mapping = MAPPING.match(line)
        if mapping is not None:
            first, end, permissions, file = mapping.groups()
            is_library = ".so" in Path(file).name and "w" not in permissions and permissions.endswith("p")
            candidate = (int(first, 16), int(end, 16)) if is_library else None
        elif line[:1] in "0123456789abcdef":  # a mapping of no file
            candidate = None
        elif candidate is not None and line.startswith("Anonymous:") and line.split()[1] == "0":
            found.append(candidate)
    return found
