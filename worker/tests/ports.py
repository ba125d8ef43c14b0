"""Ports for tests, and how grpcio is to name a unix socket."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

# An option of channels: else grpcio sends the path of a unix socket as authority, which is none that HTTP/2 knows.
LOCALHOST = [("grpc.default_authority", "localhost")]


def free_port() -> int:
    """A port that nobody holds, and that the kernel gives to no connection of another test before it is listened on."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()[0])
    for _ in range(100):
        # 0, any of those that are given, where they leave too few others.
        port = random.SystemRandom().randrange(10_000, first_given) if first_given > 12_000 else 0
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise AssertionError("no port is free")
