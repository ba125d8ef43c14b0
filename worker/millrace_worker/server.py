"""The gRPC face of one rank: a synchronous server on a unix socket, and the one thread that computes.

Whatever calls operators does so on the compute thread: `Prepare` and the steps of `Run` (`pipeline.py`). Describe and
health are answered by the server's threads during a step. This module imports no torch: it listens before that is done.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from millrace_worker import logs
from millrace_worker.pipeline import StepPipeline
from millrace_worker.proto import worker_pb2, worker_pb2_grpc
from millrace_worker.pulse import STAGES, Pulse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from millrace_worker.rank import Rank

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)

# One answers a stream; the rest wait for a load, answer health, or leave at once.
SERVER_THREADS = 16

# How often a call that waits for the load looks whether its caller is still there.
POLL_SECONDS = 0.2


class StreamSlot:
    """The right to use the engine. There is one holder; a newer one ends the older, and waits until it has let go."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: grpc.ServicerContext | None = None
        self._is_held = False

    @contextlib.contextmanager
    def taken_by(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Aborts a call that is replaced while it waits: else it would wait for the one that has replaced it."""
        with self._changed:
            older, self._newest = self._newest, context
            self._changed.notify_all()
        if older is not None:
            logs.info("a newer stream replaces the older one")
            older.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held or self._newest is not context)
            is_replaced = self._newest is not context
            self._is_held = self._is_held or not is_replaced
        if is_replaced:
            context.abort(grpc.StatusCode.CANCELLED, "a newer stream has replaced this one")
        try:
            yield
        finally:
            with self._changed:
                self._is_held = False
                if self._newest is context:
                    self._newest = None
                self._changed.notify_all()


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """The rpcs of `Worker`. `loading` resolves to the rank; `die` ends the process after a fault of the rank;
    `pulse` is what `Beat` answers."""

    def __init__(self, loading: Future[Rank], threads: int, die: Callable[[str], None], pulse: Pulse) -> None:
        self._loading = loading
        self._die = die
        self._pulse = pulse
        self._slot = StreamSlot()
        self._stopping = threading.Event()
        self._pipeline: StepPipeline | None = None
        # One thread for the life of the process: a second one would bring its own pool of OpenMP threads, and the two
        # pools would share the cores.
        self._compute_thread = ThreadPoolExecutor(1, "compute", initializer=_use_threads, initargs=(threads,))

    def Beat(  # noqa: N802 - the service's name
        self,
        request: worker_pb2.BeatRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> worker_pb2.Heartbeat:
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

    def Describe(  # noqa: N802 - the service's name
        self,
        request: worker_pb2.DescribeRequest,  # noqa: ARG002
        context: grpc.ServicerContext,
    ) -> worker_pb2.ModelDescription:
        return self._rank(context).describe()

    def Prepare(  # noqa: N802
        self, request: worker_pb2.PrepareRequest, context: grpc.ServicerContext
    ) -> worker_pb2.Prepared:
        rank = self._rank(context)
        with self._slot.taken_by(context):
            try:
                return self._compute_thread.submit(rank.prepare, request).result()
            except ValueError as error:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            except BaseException as error:  # a panic in a kernel is no `Exception`: the call would have no end
                logs.error("Prepare failed", error=f"{type(error).__name__}: {error}")
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the worst case does not run: {error}")

    def Run(  # noqa: N802
        self, request_iterator: Iterator[worker_pb2.StepPlan], context: grpc.ServicerContext
    ) -> Iterator[worker_pb2.StepResult]:
        # A client may await the response headers before it sends its first plan: they must not wait for a result.
        context.send_initial_metadata(())
        rank = self._rank(context)
        with self._slot.taken_by(context):
            try:
                engine = rank.engine
            except RuntimeError as error:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            pipeline = self._pipeline = StepPipeline(engine, self._die, self._pulse)
            # Ends with the call, whose end ends the iterator.
            threading.Thread(target=pipeline.read, args=(request_iterator,), name="plans", daemon=True).start()
            computing = self._compute_thread.submit(pipeline.compute)
            try:
                if self._stopping.is_set():
                    pipeline.end()
                yield from pipeline.results()
            finally:
                pipeline.end()
                computing.result()

    def stop(self) -> None:
        """No new stream; the step that runs is finished and answered."""
        self._stopping.set()
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.end()

    def _rank(self, context: grpc.ServicerContext) -> Rank:
        """Waits for the load as long as the caller waits."""
        while context.is_active() and not self._stopping.is_set():
            try:
                return self._loading.result(timeout=POLL_SECONDS)
            except FutureTimeoutError:
                continue
            except Exception as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, f"this worker could not load its model: {error}")
        context.abort(grpc.StatusCode.UNAVAILABLE, "this worker is stopping")
        raise AssertionError("abort raises")


def _use_threads(count: int) -> None:
    """The number of an operator's threads is a property of the thread that calls it."""
    import torch

    torch.set_num_threads(count)


class WorkerServer:
    """Listens from its construction on; `stop` ends it in order."""

    def __init__(self, service: WorkerService, path: Path) -> None:
        self._service = service
        self._path = path
        remove_stale_socket(path)
        self._health = health.HealthServicer()
        self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server = grpc.server(ThreadPoolExecutor(SERVER_THREADS, "grpc"), options=SERVER_OPTIONS)
        worker_pb2_grpc.add_WorkerServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        # Whoever can connect is obeyed. The file is made with this process's mask: only its own user may.
        mask = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        finally:
            os.umask(mask)
        self._server.start()

    def set_serving(self) -> None:
        """The weights are loaded: health says so."""
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_seconds: float) -> None:
        self._health.enter_graceful_shutdown()
        self._service.stop()
        self._server.stop(grace_seconds).wait()
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
