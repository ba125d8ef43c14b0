"""Ports and socket prefixes that no other launcher on this machine takes at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from millrace_launcher.errors import LauncherError, Variant, argument_error

# Linux keeps a unix socket's path in 108 bytes, the last of them zero.
MAX_SOCKET_PATH_BYTES = 107
_ATTEMPTS = 100


def _try_bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen. Ports in TIME_WAIT count as free, as they do for the router."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if port else 0)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


@dataclass(frozen=True)
class ReservedPort:
    """A port that every launcher on this machine leaves to its holder until `release`.

    A port cannot be handed to a child bound, so what is held is a name: an abstract unix socket, which the kernel
    removes with the process that bound it. Other programs may still take the port in between; then the child fails to
    bind and says so.
    """

    number: int
    _claim: socket.socket

    def release(self) -> None:
        self._claim.close()


def reserve_port(host: str, wanted: int | None) -> ReservedPort:
    """The wanted port, or any free one. Raises `OSError` when the wanted port is taken."""
    for _ in range(_ATTEMPTS):
        bound = _try_bind(host, wanted or 0)
        number = int(bound.getsockname()[1])
        bound.close()
        try:
            return ReservedPort(number, _claim(host, number))
        except OSError:
            if wanted:
                raise
    raise OSError(errno.EADDRINUSE, "no free port was found")


def reserve_http_port(host: str, port: int) -> ReservedPort:
    """The router's port; 0 is any. Raises `WebserverFailed` when the router could not listen there: known before a
    model is fetched or loaded."""
    try:
        return reserve_port(host, port or None)
    except OSError as error:
        reason = "it is in use; choose another `--port`" if error.errno == errno.EADDRINUSE else error.strerror
        raise LauncherError(Variant.WEBSERVER_FAILED, f"cannot listen on {host} port {port}: {reason}") from None


def reserve_master_port(wanted: int | None) -> ReservedPort:
    """Where the ranks of one group meet. Raises `ArgumentValidation` when the wanted port is taken."""
    try:
        return reserve_port("0.0.0.0", wanted)
    except OSError:
        raise argument_error(
            f"`--master-port` {wanted} is in use; choose another, or leave the flag out to get a free one"
        ) from None


def _claim(host: str, number: int) -> socket.socket:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0millrace-port-{host}-{number}")
    except OSError:
        claim.close()
        raise
    return claim


@dataclass(frozen=True)
class PrivateFolder:
    """What this launcher keeps on disk while it runs: its workers' sockets and folders of links. Only its user can
    look into it. `uds_prefix` lies elsewhere when the user says so."""

    path: Path
    uds_prefix: str
    _lock: IO[str] | None = None

    @classmethod
    def make(cls, shard_uds_path: str | None, num_shard: int) -> PrivateFolder:
        """Raises `ArgumentValidation` when the given prefix cannot be used or another launcher uses it."""
        if shard_uds_path is None:
            path = _short_private_path()
            return cls(path, str(path / "worker"))
        _check_prefix(shard_uds_path, num_shard)
        lock = _lock_prefix(shard_uds_path)
        return cls(_short_private_path(), shard_uds_path, lock)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _short_private_path() -> Path:
    """A new folder of mode 0700 whose path leaves room for a socket's name: under /tmp if TMPDIR is too deep."""
    path = Path(tempfile.mkdtemp(prefix="millrace-"))
    if len(os.fsencode(path / "worker-9999")) <= MAX_SOCKET_PATH_BYTES:
        return path
    path.rmdir()
    return Path(tempfile.mkdtemp(prefix="millrace-", dir="/tmp"))


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


def _lock_prefix(prefix: str) -> IO[str]:
    """An open file, locked as long as this process lives."""
    lock = Path(f"{prefix}.lock").open("w")  # noqa: SIM115 - its holder closes it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise argument_error(
            f"`--shard-uds-path` {prefix} is in use by another launcher: give each its own prefix, or none"
        ) from None
    return lock
