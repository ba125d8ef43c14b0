"""The gRPC face of one rank: the methods that the transport calls, and the one thread that computes.

Whatever calls operators does so on the compute thread: `Prepare` and the steps of `Run` (`stream.py`). Describe and
health are answered by other threads during a step. This module imports no torch: it listens before that is done.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import millrace_transport
from millrace_transport import RefusedError

from millrace_worker import logs
from millrace_worker.proto import worker_pb2
from millrace_worker.pulse import STAGES, Pulse
from millrace_worker.stream import StepStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from millrace_transport import Call, Stream

    from millrace_worker.rank import Rank

# What this module calls of the transport; another number is another build's.
INTERFACE = 1

# How often a call that waits for the load looks whether its caller is still there.
POLL_SECONDS = 0.2


class Code(IntEnum):
    """The gRPC statuses that a worker gives, by their numbers."""

    CANCELLED = 1
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNAVAILABLE = 14


class Caller(Protocol):
    """Whose call it is: the transport's `Call` or `Stream`."""

    def is_active(self) -> bool: ...

    def cancel(self) -> None: ...


class EngineSlot:
    """The right to use the engine. There is one holder; a newer one ends the older, and waits until it has let go."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: Caller | None = None
        self._is_held = False

    @contextlib.contextmanager
    def taken_by(self, caller: Caller) -> Iterator[None]:
        """Refuses a call that is replaced while it waits: else it would wait for the one that has replaced it."""
        with self._changed:
            older, self._newest = self._newest, caller
            self._changed.notify_all()
        if older is not None:
            logs.info("a newer stream replaces the older one")
            older.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held or self._newest is not caller)
            is_replaced = self._newest is not caller
            self._is_held = self._is_held or not is_replaced
        if is_replaced:
            raise RefusedError(Code.CANCELLED, "a newer stream has replaced this one")
        try:
            yield
        finally:
            with self._changed:
                self._is_held = False
                if self._newest is caller:
                    self._newest = None
                self._changed.notify_all()


class WorkerService:
    """The rpcs of `Worker`. `loading` resolves to the rank; `die` ends the process after a fault of the rank;
    `pulse` is what `Beat` answers. Methods raise `RefusedError` for a status that the client is told."""

    def __init__(self, loading: Future[Rank], threads: int, die: Callable[[str], None], pulse: Pulse) -> None:
        self._loading = loading
        self._die = die
        self._pulse = pulse
        self._slot = EngineSlot()
        self._stopping = threading.Event()
        self._stream: Stream | None = None
        # One thread for the life of the process: a second one would bring its own pool of OpenMP threads, and the two
        # pools would share the cores.
        self._compute_thread = ThreadPoolExecutor(1, "compute", initializer=_use_threads, initargs=(threads,))

    def beat(self) -> worker_pb2.Heartbeat:
        pulse = self._pulse
        bytes_read, bytes_to_read = pulse.weights
        return worker_pb2.Heartbeat(
            progress=pulse.progress,
            is_computing=pulse.is_computing,
            generation=pulse.generation,
            stage=pulse.stage_name,
            done=pulse.stage,
            total=len(STAGES),
            bytes_read=bytes_read,
            bytes_to_read=bytes_to_read,
        )

    def describe(self, call: Caller) -> worker_pb2.ModelDescription:
        return self._rank(call).describe()

    def prepare(self, call: Caller, request: worker_pb2.PrepareRequest) -> worker_pb2.Prepared:
        rank = self._rank(call)
        with self._slot.taken_by(call):
            try:
                return self._compute_thread.submit(rank.prepare, request).result()
            except ValueError as error:
                raise RefusedError(Code.FAILED_PRECONDITION, str(error)) from error
            except BaseException as error:  # a panic in a kernel is no `Exception`: the call would have no end
                logs.error("Prepare failed", error=f"{type(error).__name__}: {error}")
                raise RefusedError(Code.RESOURCE_EXHAUSTED, f"the worst case does not run: {error}") from error

    def run(self, stream: Stream) -> None:
        rank = self._rank(stream)
        with self._slot.taken_by(stream):
            try:
                engine = rank.engine
            except RuntimeError as error:
                raise RefusedError(Code.FAILED_PRECONDITION, str(error)) from error
            self._stream = stream
            if self._stopping.is_set():
                stream.end()
            self._compute_thread.submit(StepStream(engine, stream, self._die, self._pulse).compute).result()

    def stop(self) -> None:
        """No new stream; the step that runs is finished and answered."""
        self._stopping.set()
        if self._stream is not None:
            self._stream.end()

    def _rank(self, caller: Caller) -> Rank:
        """Waits for the load as long as the caller waits."""
        while caller.is_active() and not self._stopping.is_set():
            try:
                return self._loading.result(timeout=POLL_SECONDS)
            except FutureTimeoutError:
                continue
            except Exception as error:
                message = f"this worker could not load its model: {error}"
                raise RefusedError(Code.UNAVAILABLE, message) from error
        raise RefusedError(Code.UNAVAILABLE, "this worker is stopping")


def _use_threads(count: int) -> None:
    """The number of an operator's threads is a property of the thread that calls it."""
    import torch

    torch.set_num_threads(count)


_prepare_request = worker_pb2.PrepareRequest.FromString


class WorkerServer:
    """Listens from its construction on; `stop` ends it in order."""

    def __init__(self, service: WorkerService, path: Path) -> None:
        self._service = service
        self._path = path
        if millrace_transport.INTERFACE != INTERFACE:
            raise RuntimeError("millrace_transport is of another version than the worker: install both again")
        remove_stale_socket(path)
        calls: dict[str, Callable[[Call, bytes], bytes]] = {
            "Beat": lambda _, __: service.beat().SerializeToString(),
            "Describe": lambda call, _: service.describe(call).SerializeToString(),
            "Prepare": lambda call, request: service.prepare(call, _prepare_request(request)).SerializeToString(),
        }
        # Whoever can connect is obeyed. The file is made with this process's mask: only its own user may.
        mask = os.umask(0o177)
        try:
            self._server = millrace_transport.Server(path, calls, {"Run": service.run})
        finally:
            os.umask(mask)

    def set_serving(self) -> None:
        """The weights are loaded: health says so."""
        self._server.set_serving(True)

    def stop(self, grace_seconds: float) -> None:
        self._server.set_serving(False)
        self._service.stop()
        self._server.stop(grace_seconds)
        self._path.unlink(missing_ok=True)


def remove_stale_socket(path: Path) -> None:
    """Raises OSError when somebody listens there, or when the path is something other than a socket."""
    if not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(f"{path} exists and is not a socket: choose another --uds-path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):  # only these mean that nobody is there
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise OSError(
                f"somebody listens on {path} and does not answer ({error}): choose another --uds-path"
            ) from None
    raise FileExistsError(f"another worker listens on {path}: choose another --uds-path")
