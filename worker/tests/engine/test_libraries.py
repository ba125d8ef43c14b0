"""Clean pages of libraries are given back, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from millrace_worker.libraries import clean_libraries, give_back_pages

ADDRESSES = "7f0000000000-7f0000002000"


def mapping(permissions: str = "r-xp", file: str = "/lib/libone.so.13", anonymous: int = 0) -> str:
    return (
        f"{ADDRESSES} {permissions} 00001000 fe:00 1234                     {file}\n"
        f"Size:                  8 kB\nRss:                   8 kB\nAnonymous:             {anonymous} kB\n"
        "VmFlags: rd ex mr mw me\n"
    )


def test_only_clean_libraries_are_found() -> None:
    span = (0x7F0000000000, 0x7F0000002000)
    assert clean_libraries(mapping()) == [span]
    assert clean_libraries(mapping("r--p") + mapping(file="/a folder/x.cpython-311-x86_64-linux-gnu.so")) == [span] * 2
    for other in (
        mapping("rw-p"),
        mapping("r-xs"),
        mapping(anonymous=4),  # relocated by the loader
        mapping(file="/models/model.safetensors"),
        mapping(file="/models/v1.source/model.safetensors"),
        mapping(file="[heap]"),
        mapping(file=""),
        mapping().replace("Anonymous:             0 kB\n", ""),
    ):
        assert clean_libraries(other) == []
        assert clean_libraries(other + mapping()) == [span]


def test_pages_are_given_back_and_come_again() -> None:
    x = torch.rand(64, 64)
    expected = torch.linalg.svdvals(x)
    before = resident_file_kib()
    give_back_pages()
    assert resident_file_kib() < before / 2
    assert torch.equal(torch.linalg.svdvals(x), expected)


def test_without_the_systems_list_nothing_happens(tmp_path: Path) -> None:
    give_back_pages(tmp_path / "smaps")


def resident_file_kib() -> int:
    found = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])
