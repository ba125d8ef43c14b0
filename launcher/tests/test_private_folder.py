"""Private folders: what living launchers keep, what killed ones leave, and launchers that start at the same moment."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from millrace_launcher import private_folder
from millrace_launcher.errors import LauncherError
from millrace_launcher.private_folder import PrivateFolder, remove_stale_folders


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(private_folder, "_SHORT_PARENT", str(tmp_path))
    return tmp_path


def killed(folder: PrivateFolder) -> PrivateFolder:
    """As if its launcher had been killed: the kernel closes its files."""
    folder.lock.close()
    return folder


def test_only_folders_of_dead_launchers_are_removed(temporary: Path) -> None:
    living, dead = PrivateFolder.make(None, 1), killed(PrivateFolder.make(None, 1))
    (dead.path / "worker-0").touch()
    (dead.path / "model").mkdir()
    (dead.path / "model" / "config.json").symlink_to(__file__)
    assert remove_stale_folders() == [dead.path]
    assert Path(__file__).exists()
    assert living.path.is_dir()
    living.remove()
    living.remove()
    assert list(temporary.iterdir()) == []


def test_what_is_no_launchers_folder_stays(temporary: Path) -> None:
    dead = killed(PrivateFolder.make(None, 1))
    elsewhere = temporary / "elsewhere"
    dead.path.rename(elsewhere)
    (temporary / "millrace-launcher-link").symlink_to(elsewhere)
    (temporary / "millrace-launcher-file").touch()
    (temporary / "millrace-launcher-without-lock").mkdir()
    before = sorted(temporary.iterdir())
    assert remove_stale_folders() == []
    assert sorted(temporary.iterdir()) == before
    assert (elsewhere / "lock").exists()


def test_a_removal_that_was_broken_off_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = killed(PrivateFolder.make(None, 1))
    (dead.path / "worker-0").touch()

    def broken_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(private_folder.shutil, "rmtree", broken_off)
        with pytest.raises(KeyboardInterrupt):
            remove_stale_folders()
    assert remove_stale_folders() == [dead.path]


def test_a_folder_that_is_lost_before_it_is_locked_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moment: another launcher clears up between the making of the lock file and its locking."""
    flock = fcntl.flock
    lost: list[Path] = []

    def clear_up_first(*arguments: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        lost.extend(remove_stale_folders())
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", clear_up_first)
    mine = PrivateFolder.make(None, 1)
    assert len(lost) == 1
    assert mine.path.is_dir()
    assert mine.path != lost[0]
    assert remove_stale_folders() == []


def test_a_folder_that_is_lost_at_once_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and that of its lock file."""
    made = private_folder._short_private_path
    lost: list[Path] = []

    def lose_the_first() -> Path:
        path = made()
        if not lost:
            path.rmdir()
            lost.append(path)
        return path

    monkeypatch.setattr(private_folder, "_short_private_path", lose_the_first)
    mine = PrivateFolder.make(None, 1)
    assert mine.path.is_dir()
    assert [mine.path] != lost


def test_where_paths_are_too_long_for_sockets_it_lies_elsewhere(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = temporary / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert PrivateFolder.make(None, 1).path.parent == temporary
    assert not list(deep.iterdir())


def test_a_place_where_files_cannot_be_locked_is_refused(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    dead = killed(PrivateFolder.make(None, 1))
    monkeypatch.setattr(fcntl, "flock", without_locks)
    assert remove_stale_folders() == []
    with pytest.raises(LauncherError, match=r"No locks available.*TMPDIR"):
        PrivateFolder.make(None, 1)
    assert list(temporary.iterdir()) == [dead.path]


def test_a_folder_that_somebody_else_removed_is_no_trouble() -> None:
    mine = PrivateFolder.make(None, 1)
    shutil.rmtree(mine.path)
    mine.remove()


def test_launchers_that_start_and_are_killed_together_keep_their_own_folders(temporary: Path) -> None:
    faults: list[str] = []

    def live() -> None:
        for life in range(40):
            remove_stale_folders()
            mine = PrivateFolder.make(None, 1)
            (mine.path / "worker-0").touch()
            remove_stale_folders()
            if not (mine.path / "worker-0").exists():
                faults.append(str(mine.path))
            if life % 2:
                killed(mine)
            else:
                mine.remove()

    threads = [threading.Thread(target=live) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    remove_stale_folders()
    assert list(temporary.iterdir()) == []


def test_only_its_user_can_look_into_a_private_folder() -> None:
    mask = os.umask(0)
    try:
        mine = PrivateFolder.make(None, 1)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(mine.path.stat().st_mode) == 0o700
    mine.remove()


def test_links_that_others_have_laid_are_not_followed(temporary: Path) -> None:
    """In a folder where everybody may write, somebody waits with a link under the name of the lock."""
    victim = temporary / "victim"
    victim.write_text("precious")
    prefix = temporary / "workers"
    Path(f"{prefix}.lock").symlink_to(victim)
    with pytest.raises(LauncherError, match=r"workers\.lock cannot be opened"):
        PrivateFolder.make(str(prefix), 1)
    assert victim.read_text() == "precious"
    Path(f"{prefix}.lock").unlink()
    Path(f"{prefix}.lock").symlink_to(temporary / "not there yet")
    with pytest.raises(LauncherError, match=r"workers\.lock cannot be opened"):
        PrivateFolder.make(str(prefix), 1)
    assert not (temporary / "not there yet").exists()


def test_a_folder_in_which_everybody_may_replace_the_sockets_is_refused(temporary: Path) -> None:
    everybodys = temporary / "everybodys"
    everybodys.mkdir()
    everybodys.chmod(0o777)
    with pytest.raises(LauncherError, match="everybody can write"):
        PrivateFolder.make(str(everybodys / "worker"), 1)
    everybodys.chmod(0o1777)
    PrivateFolder.make(str(everybodys / "worker"), 1).remove()


def test_a_link_inside_a_stale_folder_leads_to_no_removal(temporary: Path) -> None:
    dead = killed(PrivateFolder.make(None, 1))
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (dead.path / "model").symlink_to(elsewhere)
    assert remove_stale_folders() == [dead.path]
    assert (elsewhere / "precious").exists()
