"""The server's processes on this machine, found by the port that the router listens on (Linux's /proc)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LISTENING = "0A"


class NotFoundError(Exception):
    """The server's processes are not on this machine, or not ours to see."""


@dataclass(frozen=True)
class Processes:
    """A launcher, whose children are a router and ranks."""

    launcher: int

    @classmethod
    def behind(cls, port: int) -> Processes:
        """Raises `NotFoundError` when no server on this machine that we may look at listens there."""
        owners = _owners(port)
        if not owners:
            raise NotFoundError(f"no process of ours listens on port {port} of this machine; name the launcher's pid")
        for owner in owners:
            # The launcher holds the port for its router, or the router alone has it.
            for launcher in (cls(owner), cls(_parent(owner))):
                if launcher.router() is not None:
                    return launcher
        raise NotFoundError(f"port {port} belongs to process {owners[0]}, which is no Millrace server")

    def ranks(self) -> list[int]:
        """Process ids of the ranks that live."""
        return [pid for pid in self._children() if "millrace_worker" in _command(pid)]

    def router(self) -> int | None:
        return next((pid for pid in self._children() if "millrace-router" in _command(pid)), None)

    def told(self, variable: str) -> str | None:
        """A variable of the environment that the ranks were started with."""
        for pid in self.ranks():
            try:
                words = (_PROC / str(pid) / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            return next((word.partition("=")[2] for word in words if word.startswith(f"{variable}=")), None)
        return None

    def _children(self) -> list[int]:
        found = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
        return sorted(pid for pid in found if _parent(pid) == self.launcher)


def resident_bytes(pid: int) -> int:
    """The memory that a process holds, 0 when it is gone."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _parent(pid: int) -> int:
    """0 for what is gone or a zombie."""
    try:
        state, parent = (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


def _command(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _owners(port: int) -> list[int]:
    """Who listens on a TCP port: a socket's inode by its port, the process by the inode among its descriptors."""
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    processes = (entry for entry in _PROC.iterdir() if entry.name.isdigit())
    return [int(entry.name) for entry in processes if inodes & _descriptors(entry)]


def _descriptors(process: Path) -> set[str]:
    found: set[str] = set()
    try:
        for link in (process / "fd").iterdir():
            try:
                found.add(str(link.readlink()))
            except OSError:
                continue
    except OSError:
        pass
    return found
