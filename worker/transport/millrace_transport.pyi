"""A worker's gRPC server over a unix socket: bytes in, bytes out. The thread of its sockets never needs the
interpreter."""

from collections.abc import Callable, Mapping
from os import PathLike

INTERFACE: int

class RefusedError(Exception):
    """Raised with (code, message) by a method: the gRPC status, a number, that its client is told."""

    def __init__(self, code: int, message: str) -> None: ...

class Call:
    """A call as its method sees it. Any thread may use it."""

    def is_active(self) -> bool:
        """Whether its client still waits."""

    def cancel(self) -> None:
        """The client is told that the call was cancelled; its method goes on until it asks `is_active`."""

class Stream:
    """A stream as its method sees it. One thread receives; any thread may use the rest."""

    def receive(self) -> bytes | None:
        """Waits for the next request. None: the client has sent its last one, or the stream has ended."""

    def send(self, answer: bytes, /) -> None:
        """Never waits. Goes nowhere if the client is gone."""

    def is_active(self) -> bool:
        """Whether somebody still waits for what is to come."""

    def end(self) -> None:
        """No further request is received; what is sent still arrives."""

    def cancel(self) -> None:
        """As `end`, and the client is told that its call was cancelled, after what has been sent so far."""

    def on_end(self, call: Callable[[], None] | None, /) -> None:
        """Calls it, from any thread, when the stream ends before its method does, unless it is cut by `stop`: at once
        if that was before. None: nothing is called from now on, and a call that is under way has returned."""

class Server:
    """Listens from its construction on, raising OSError when it cannot. Every method runs in a thread of its own."""

    def __init__(
        self,
        path: PathLike[str] | str,
        calls: Mapping[str, Callable[[Call, bytes], bytes]],
        streams: Mapping[str, Callable[[Stream], None]],
    ) -> None: ...
    def set_serving(self, is_serving: bool) -> None:
        """What `grpc.health.v1` answers: not serving, until it is told."""

    def stop(self, grace_seconds: float) -> None:
        """No new call; those that run may take this long, then they are cut. Returns when all is over."""
