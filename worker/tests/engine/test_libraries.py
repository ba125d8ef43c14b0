"""Clean pages of libraries are given back, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from millrace_worker.libraries import Mapping, give_back_pages, mappings

LIBRARY = """\
7f0000000000-7f0000002000 r-xp 00001000 fe:00 1234                     /lib/libone.so.13
Size:                  8 kB
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
"""


def here() -> list[Mapping]:
    told = Path("/proc/self/smaps")
    return list(mappings(told.read_text(errors="replace"))) if told.exists() else []


def changed(was: str, to: str) -> str:
    assert was in LIBRARY
    return LIBRARY.replace(was, to)


def test_only_clean_libraries_are_found() -> None:
    name = "/lib/libone.so.13"
    for clean in (LIBRARY, changed("r-xp", "r--p"), changed(name, "/a folder/x.cpython-311-x86_64-linux-gnu.so")):
        assert [each.is_clean_library for each in mappings(clean)] == [True]
    for other in (
        changed("r-xp", "rw-p"),
        changed("r-xp", "r-xs"),
        changed("Anonymous:             0", "Anonymous:             4"),  # relocated by the loader
        changed("Swap:                  0", "Swap:                  4"),  # and swapped out since
        changed("Anonymous:             0 kB\n", ""),
        changed("Swap:                  0 kB\n", ""),
        changed(
            "Rss:                   8", "Rss:                   0"
        ),  # nothing to give, or a system that tells nothing
        changed(name, "/models/model.safetensors"),
        changed(name, "/models/v1.source/model.safetensors"),
        changed(name, "/models/model.sorted.safetensors"),
        changed(name, "[heap]"),
        changed(name, ""),
    ):
        assert [each.is_clean_library for each in mappings(other)] == [False]
        assert [each.is_clean_library for each in mappings(other + LIBRARY + other)] == [False, True, False]
    assert [(each.first, each.end) for each in mappings(LIBRARY)] == [(0x7F0000000000, 0x7F0000002000)]


PROGRAM = """
import torch
from pathlib import Path
from millrace_worker.libraries import give_back_pages, mappings

def resident_kib():
    told = Path("/proc/self/smaps").read_text()
    return sum(each.figures["Rss"] for each in mappings(told) if each.is_clean_library)

x = torch.rand(64, 64)
expected, before = torch.linalg.svdvals(x), resident_kib()
give_back_pages()
print(before, resident_kib())
torch.testing.assert_close(torch.linalg.svdvals(x), expected)
"""


@pytest.mark.skipif(not any(each.is_clean_library for each in here()), reason="this system tells no mappings")
def test_pages_are_given_back_and_come_again() -> None:
    """In a process that has just read its libraries."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120, stdout=subprocess.PIPE, text=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 2


def test_without_the_systems_list_nothing_happens(tmp_path: Path) -> None:
    give_back_pages(tmp_path / "smaps")
