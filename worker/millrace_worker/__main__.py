"""`python -m millrace_worker`: listens at once, loads in the background, ends in order on SIGTERM."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from millrace_worker import logs
from millrace_worker.config import WorkerConfig, read_config
from millrace_worker.leaving import leave
from millrace_worker.pulse import STAGES, Pulse
from millrace_worker.server import WorkerServer, WorkerService
from millrace_worker.vectors import avoid_slow_vectors

if TYPE_CHECKING:
    from millrace_worker.rank import Rank

# A step that runs at SIGTERM may take this long before its stream is cut.
GRACE_SECONDS = 30.0


class Ending:
    """Why the process ends: the first reason counts. Signal handlers decide too, so there is no lock to wait for."""

    def __init__(self) -> None:
        self._reasons: SimpleQueue[tuple[int, str]] = SimpleQueue()

    def decide(self, status: int, message: str = "") -> None:
        self._reasons.put((status, message))

    def wait(self) -> tuple[int, str]:
        """The exit status and what is said with it."""
        return self._reasons.get()


def main() -> NoReturn:
    started = time.perf_counter()
    avoid_slow_vectors(os.environ)
    config = read_config(sys.argv[1:], os.environ)
    logs.set_up_logs(config.log_level, json_output=config.json_output)
    # Stacks go to stderr, which the launcher reads: after a crash by themselves, of a hung rank when it asks.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    ending = Ending()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.decide(0))
    if config.lifeline:
        threading.Thread(target=watch_lifeline, args=(config,), name="lifeline", daemon=True).start()
    loading: Future[Rank] = Future()
    pulse = Pulse(config.generation)
    service = WorkerService(loading, config.threads, die_at_once, pulse)
    try:
        server = WorkerServer(service, config.socket_path)
    except (OSError, RuntimeError) as error:
        leave(1, f"cannot listen on {config.socket_path}: {error}")
    logs.info("listening", socket=str(config.socket_path), start_ms=round((time.perf_counter() - started) * 1000))
    arguments = (config, loading, server, ending, pulse)
    threading.Thread(target=load, args=arguments, name="load", daemon=True).start()
    status, message = ending.wait()
    server.stop(GRACE_SECONDS if status == 0 else 0)
    leave(status, message)


def load(config: WorkerConfig, loading: Future[Rank], server: WorkerServer, ending: Ending, pulse: Pulse) -> None:
    """Resolves `loading`, or ends the process with one line that says why not."""
    try:
        started = time.perf_counter()
        pulse.stage = STAGES.index("importing libraries")
        from millrace_worker.models import preflight

        preflight.check(config)
        from millrace_worker.load import load_rank

        logs.info("imported", import_ms=round((time.perf_counter() - started) * 1000))
        pulse.stage = STAGES.index("loading the weights")
        rank = load_rank(config, pulse.read)
        # Libraries and weights stay: no collection of garbage, with which Prepare begins, looks through them again.
        gc.collect()
        gc.freeze()
        pulse.stage = len(STAGES)
        loading.set_result(rank)
        server.set_serving()
    except BaseException as error:  # a panic in a kernel, or a model's own code that leaves, is no `Exception`
        logs.error("loading failed", error=str(error), exc_info_type=type(error).__name__)
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, Exception):
            reason = f"{type(error).__name__}: {reason}"
        if not loading.done():
            loading.set_exception(error if isinstance(error, Exception) else RuntimeError(reason))
        # Most reasons begin with the file.
        named = reason.startswith(str(config.model_path))
        ending.decide(1, f"cannot load {reason}" if named else f"cannot load {config.model_path}: {reason}")


def watch_lifeline(config: WorkerConfig) -> None:
    """Standard input is a pipe that the launcher holds open: its end means that the launcher is gone."""
    with contextlib.suppress(OSError):  # closed already: the same news
        while os.read(0, 4096):
            pass
    with contextlib.suppress(OSError):  # a folder that may not be written any more
        config.socket_path.unlink(missing_ok=True)
    leave(1, "the launcher is gone")


def die_at_once(message: str) -> None:
    """After a fault that this process cannot outlive. Called from the thread that computed."""
    leave(1, message)


if __name__ == "__main__":
    main()
