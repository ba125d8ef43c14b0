"""The port of HTTP, listened on from the first second, and ports that no other launcher on this machine takes."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from millrace_launcher.errors import LauncherError, Variant, argument_error

_ATTEMPTS = 100
# As many connections as the router's own socket would hold.
_WAITING_CLIENTS = 1024


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


def listen_http(host: str, port: int) -> socket.socket:
    """The router's port, listened on; 0 is any. Clients that connect wait for a router to take them, also while one is
    replaced by another. Raises `WebserverFailed` when nobody can listen there: known before a model is fetched or
    loaded."""
    try:
        listener = _try_bind(host, port)
        listener.listen(_WAITING_CLIENTS)
        return listener
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
