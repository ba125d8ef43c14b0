"""What a launcher keeps on disk while it runs, and the clearing up after launchers that were killed.

A folder belongs to a living launcher while the file `lock` in it is locked (`flock`: the kernel lets go of it with the
process, whatever ended that). Who holds the lock may remove the folder, and nobody else. Between making its lock file
and locking it a launcher can lose its folder to one that clears up; it notices that the file it has locked is no longer
the one of that name, and makes another folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from millrace_launcher.errors import argument_error

# Linux keeps a unix socket's path in 108 bytes, the last of them zero.
MAX_SOCKET_PATH_BYTES = 107
_FOLDER_PREFIX = "millrace-launcher-"
_LOCK_NAME = "lock"
_SHORT_PARENT = "/tmp"


@dataclass(frozen=True)
class PrivateFolder:
    """This launcher's own folder: its workers' sockets and folders of links. Only its user can look into it.

    `uds_prefix` lies elsewhere when the user says so; `prefix_lock` then keeps other launchers off it.
    """

    path: Path
    uds_prefix: str
    lock: IO[str]
    prefix_lock: IO[str] | None = None

    @classmethod
    def make(cls, shard_uds_path: str | None, num_shard: int) -> PrivateFolder:
        """Raises `ArgumentValidation` when the given prefix cannot be used or another launcher uses it."""
        if shard_uds_path is None:
            path, lock = _new_folder()
            return cls(path, str(path / "worker"), lock)
        _check_prefix(shard_uds_path, num_shard)
        prefix_lock = _lock_prefix(shard_uds_path)
        path, lock = _new_folder()
        return cls(path, shard_uds_path, lock, prefix_lock)

    def remove(self) -> None:
        """May be called again."""
        if not self.lock.closed:
            _remove(self.path)
            self.lock.close()
        if self.prefix_lock is not None:
            self.prefix_lock.close()


def remove_stale_folders() -> list[Path]:
    """Removes what killed launchers of this user have left, and returns which folders those were."""
    removed: list[Path] = []
    for parent in {Path(tempfile.gettempdir()), Path(_SHORT_PARENT)}:
        for folder in parent.glob(f"{_FOLDER_PREFIX}*"):
            lock = _locked_if_stale(folder)
            if lock is not None:
                with lock:
                    _remove(folder)
                removed.append(folder)
    return sorted(removed)


def _locked_if_stale(folder: Path) -> IO[str] | None:
    """The folder's lock, taken, unless a living launcher or somebody else's file is behind that name."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return None
        lock = (folder / _LOCK_NAME).open("r")
        if _takes(lock, folder):
            return lock
        lock.close()
    except OSError:
        pass  # what cannot be looked into or locked is left alone
    return None


def _takes(lock: IO[str], folder: Path) -> bool:
    """Whether `lock` could be locked and still is the lock file of `folder`. Raises `OSError` where nothing can be."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock.fileno()), (folder / _LOCK_NAME).stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _remove(folder: Path) -> None:
    """The lock file goes last: a removal that is broken off can be taken up by the next launcher."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK_NAME:
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> tuple[Path, IO[str]]:
    """A new folder with its lock, taken. Raises `ArgumentValidation` where files cannot be locked."""
    while True:
        folder = _short_private_path()
        try:
            lock = (folder / _LOCK_NAME).open("w")
        except FileNotFoundError:
            continue
        try:
            if _takes(lock, folder):
                return folder, lock
        except OSError as error:
            _remove(folder)
            raise argument_error(
                f"files in {folder.parent} cannot be locked ({error}): set TMPDIR to another"
            ) from None
        lock.close()


def _short_private_path() -> Path:
    """A new folder of mode 0700 whose path leaves room for a socket's name: outside TMPDIR if that is too deep."""
    path = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    if len(os.fsencode(path / "worker-9999")) <= MAX_SOCKET_PATH_BYTES:
        return path
    path.rmdir()
    return Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=_SHORT_PARENT))


def _check_prefix(prefix: str, num_shard: int) -> None:
    longest = f"{prefix}-{num_shard - 1}"
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH_BYTES:
        raise argument_error(
            f"`--shard-uds-path`: the socket path {longest} is longer than {MAX_SOCKET_PATH_BYTES} bytes, which is "
            "the most that a unix socket may have; choose a shorter prefix"
        )
    parent = Path(prefix).parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise argument_error(f"`--shard-uds-path`: {parent} is not a folder that can be written to")
    mode = parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise argument_error(
            f"`--shard-uds-path`: everybody can write to {parent} and replace the workers' sockets there; choose a "
            "folder of your own"
        )


def _lock_prefix(prefix: str) -> IO[str]:
    """An open file, locked as long as this process lives."""
    try:
        # Others may write to this folder: a link that one of them has put there is not followed.
        descriptor = os.open(f"{prefix}.lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise argument_error(
            f"`--shard-uds-path`: {prefix}.lock cannot be opened ({error.strerror}); choose another prefix"
        ) from None
    lock = os.fdopen(descriptor, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise argument_error(
            f"`--shard-uds-path` {prefix} is in use by another launcher: give each its own prefix, or none"
        ) from None
    return lock
