"""Ports that launchers of one machine leave to each other."""

from __future__ import annotations

import itertools
import socket

import pytest
from millrace_launcher import ports
from millrace_launcher.errors import LauncherError
from millrace_launcher.ports import reserve_master_port, reserve_port

HOST = "127.0.0.1"


def test_a_port_that_another_launcher_holds_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel names it as free: nobody listens there yet."""
    held = reserve_port(HOST, None)
    other = reserve_port(HOST, None)
    other.release()
    offered = itertools.chain([held.number, held.number], itertools.repeat(other.number))
    try_bind = ports._try_bind
    monkeypatch.setattr(ports, "_try_bind", lambda host, port: try_bind(host, port or next(offered)))
    found = reserve_port(HOST, None)
    assert found.number == other.number
    with pytest.raises(OSError, match="in use"):
        reserve_port(HOST, held.number)
    held.release()
    again = reserve_port(HOST, held.number)
    assert again.number == held.number
    again.release()
    found.release()


def test_without_any_free_port_there_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    held = reserve_port(HOST, None)
    try_bind = ports._try_bind
    monkeypatch.setattr(ports, "_try_bind", lambda host, _: try_bind(host, held.number))
    with pytest.raises(OSError, match="no free port"):
        reserve_port(HOST, None)
    held.release()


def test_a_master_port_that_is_taken_is_named() -> None:
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(LauncherError, match=f"`--master-port` {number} is in use"):
            reserve_master_port(number)
