"""Reports of hangs: what is in them, who can read them, how many there are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from millrace_launcher.dump import MAX_FILES, DumpFolder
from millrace_launcher.health import Hang

HANG = Hang(1, 3, "its process has not answered for 4 s", "ranks: figures")


def test_a_report_tells_who_hung_and_why_with_the_stacks_of_all(tmp_path: Path) -> None:
    path = DumpFolder(tmp_path / "made").write(HANG, {1: ("File a.py, line 1",), 0: ("File b.py, line 2",)})
    text = path.read_text()
    assert "rank 1 of group 3 hung: its process has not answered for 4 s" in text
    assert "ranks: figures" in text
    assert text.index("b.py") < text.index("a.py"), "in the order of the ranks"


def test_the_latest_reports_are_kept_and_nobody_else_can_read_them(tmp_path: Path) -> None:
    folder = DumpFolder(tmp_path / "dumps")
    mask = os.umask(0)
    try:
        paths = [folder.write(HANG, {0: (f"report {number}",)}) for number in range(MAX_FILES + 3)]
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "dumps").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
    assert len(list((tmp_path / "dumps").iterdir())) == MAX_FILES
    assert f"report {MAX_FILES + 2}" in paths[-1].read_text()


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"millrace-hang-{os.getpid()}-0.txt").symlink_to(victim)
    path = DumpFolder(tmp_path).write(HANG, {})
    assert not path.is_symlink()
    assert victim.read_text() == "precious"


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        DumpFolder(tmp_path / "file").write(HANG, {})
