"""The supervisor's hands: processes, clock and queue around the pure machine in `supervisor.py`."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from typing import assert_never

from millrace_launcher import fetching
from millrace_launcher.actions import (
    ROUTER,
    Action,
    AnnounceReady,
    AskStacks,
    ChildId,
    Exit,
    KeepDump,
    Kill,
    Say,
    StartRouter,
    StartWorkers,
    TellEnd,
    Terminate,
)
from millrace_launcher.dump import DumpFolder
from millrace_launcher.errors import LauncherError, Variant
from millrace_launcher.failures import Work
from millrace_launcher.health import Hang, Poller, is_healthy, look, work_seen
from millrace_launcher.logs import Log, Record, worker_record
from millrace_launcher.ports import ReservedPort, reserve_master_port
from millrace_launcher.process import Child, Ending
from millrace_launcher.progress import Progress
from millrace_launcher.pulse import Pulse
from millrace_launcher.resolve import Command, LaunchPlan
from millrace_launcher.supervisor import Stage, Supervisor
from millrace_launcher.timeline import Timeline

STILL_STARTING_SECONDS = 10.0
_HEALTH_SECONDS = 0.05
_HANG_SECONDS = 0.5
_SHOWN_LAST_WORDS = 40


@dataclass(frozen=True)
class Exited:
    child: ChildId
    ending: Ending


@dataclass(frozen=True)
class NotStarted:
    """A child in the place of another, which could not be had: a failure like those of children that ran."""

    child: ChildId
    why: str


@dataclass(frozen=True)
class HealthSeen:
    ok: bool


@dataclass(frozen=True)
class StopRequested:
    pass


@dataclass(frozen=True)
class Looked:
    """At the router; `works`: it has answered or at least done something."""

    works: bool
    hang: Hang | None


@dataclass(frozen=True)
class WorkSeen:
    work: Work


@dataclass(frozen=True)
class Fetched:
    """The plan with the model, or why that could not be had."""

    outcome: LaunchPlan | BaseException


Event = Exited | NotStarted | HealthSeen | Looked | WorkSeen | StopRequested | Fetched


@dataclass(frozen=True)
class Fetch:
    """How a model that is not there yet is brought here: `run` takes its time, says how far it is, and answers the plan
    with the model; `plan` is what there is before."""

    plan: LaunchPlan
    run: Callable[[fetching.Say], LaunchPlan]


class Shell:
    """Runs a plan until it ends. Events of all threads and of signal handlers arrive in one queue; `run` takes them one
    by one, asks the supervisor, and does what it says."""

    def __init__(
        self,
        beginning: LaunchPlan | Fetch,
        listener: socket.socket,
        log: Log,
        timeline: Timeline,
        reminder_seconds: float = STILL_STARTING_SECONDS,
    ) -> None:
        """`listener`: the port of HTTP, for every router in turn; it is closed when the last one has ended."""
        plan = beginning.plan if isinstance(beginning, Fetch) else beginning
        self._plan = plan
        self._fetch = beginning if isinstance(beginning, Fetch) else None
        self._fetched_so_far = ""
        self._listener = listener
        self._log = log
        self._reminder_seconds = reminder_seconds
        self._timeline = timeline
        self._progress = Progress(plan.num_shard)
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._supervisor = Supervisor(plan.num_shard, plan.termination_timeout, plan.longest_restart_wait)
        self._children: dict[ChildId, Child] = {}
        self._endings: dict[ChildId, Child] = {}
        self._master_port: ReservedPort | None = None
        self._exit: Exit | None = None
        self._hang: Hang | None = None
        self._pulse = Pulse()
        self._dumps = DumpFolder(plan.dump_folder)

    def stop(self) -> None:
        """Asks the launcher to stop; may be called from a signal handler."""
        self._events.put(StopRequested())

    def run(self) -> int:
        """Returns the exit status when everything has ended as asked; raises `LauncherError` when a child's failure
        ended it."""
        place = (self._plan.health_host, self._plan.port)
        health = Poller(lambda: self._look_closely(*place), _HEALTH_SECONDS, self._look_failed)
        hangs = Poller(lambda: self._look(*place), _HANG_SECONDS, self._look_failed)
        hangs.watch(True)
        remind_at = time.monotonic() + self._reminder_seconds
        try:
            self._begin()
            while self._exit is None:
                health.watch(self._supervisor.wants_health or self._supervisor.wants_work)
                event = self._next_event(remind_at)
                now = time.monotonic()
                self._perform(self._handle(event, now))
                self._close_port_behind_the_last_router()
                if now >= remind_at:
                    remind_at = now + self._reminder_seconds
                    self._remind(now)
        finally:
            health.end()
            hangs.end()
            self._end_children()
        self._raise_failure(self._exit)
        return self._exit.status

    def _begin(self) -> None:
        now = time.monotonic()
        if self._fetch is None:
            self._perform(self._supervisor.begin(now))
            return
        self._perform(self._supervisor.begin_fetching(now))
        threading.Thread(target=self._run_fetch, args=(self._fetch, self._children[ROUTER]), daemon=True).start()

    def _run_fetch(self, fetch: Fetch, router: Child) -> None:
        def say(report: fetching.Report) -> None:
            self._fetched_so_far = report.words
            router.tell({"progress": asdict(report)})

        try:
            plan = fetch.run(say)
        except BaseException as error:  # a panic in a library is no `Exception`
            self._events.put(Fetched(error))
            return
        router.tell({"model": {"path": str(plan.model_path), "revision": plan.revision}})
        self._events.put(Fetched(plan))

    def _fetched(self, outcome: LaunchPlan | BaseException, now: float) -> list[Action]:
        if isinstance(outcome, LauncherError):
            return self._supervisor.fetch_failed(outcome.variant, outcome.message, now)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, BaseException):  # one that ends a thread is none that ends the launcher in silence
            raise RuntimeError(f"{type(outcome).__name__}: {outcome}") from outcome
        self._plan = outcome
        self._timeline.mark("fetch")
        return self._supervisor.fetched(now)

    def _close_port_behind_the_last_router(self) -> None:
        """Who connects then is refused, and does not wait for a router that never comes."""
        if self._supervisor.stage in (Stage.STOPPING, Stage.STOPPED) and ROUTER not in self._supervisor.alive:
            self._listener.close()

    def _next_event(self, remind_at: float) -> Event | None:
        deadline = self._supervisor.next_deadline
        wake_at = remind_at if deadline is None else min(deadline, remind_at)
        try:
            return self._events.get(timeout=max(wake_at - time.monotonic(), 0.0))
        except Empty:
            return None

    def _handle(self, event: Event | None, now: float) -> list[Action]:
        match event:
            case None:
                return self._supervisor.tick(now)
            case Exited(child, ending):
                process = self._endings[child] = self._children.pop(child)
                return self._supervisor.child_exited(child, process.ending_in_words(ending), now, ending.status)
            case NotStarted(child, why):
                return self._supervisor.child_exited(child, why, now)
            case StopRequested():
                return self._supervisor.stop_requested(now)
            case Fetched(outcome):
                return self._fetched(outcome, now)
            case _:
                return self._handle_looks(event, now)

    def _handle_looks(self, event: HealthSeen | Looked | WorkSeen, now: float) -> list[Action]:
        match event:
            case HealthSeen(ok):
                return self._supervisor.health(ok, now)
            case Looked(works, hang):
                actions = self._supervisor.router_looked_at(works, now)
                if hang is None:
                    return actions
                self._hang, child, fails = hang, ChildId(hang.rank, hang.generation), hang.every_step_fails
                return actions + self._supervisor.rank_hangs(child, hang.reason, now, every_step_fails=fails)
            case WorkSeen(work):
                return self._supervisor.work_seen(work, now)

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartRouter():
                    descriptor = self._listener.fileno()
                    self._start(ROUTER, self._plan.router.listening_on(descriptor), (descriptor,))
                case StartWorkers(generation):
                    self._start_workers(generation)
                case Terminate(child) | Kill(child) | AskStacks(child):
                    self._signal(action, child)
                case TellEnd(reason):
                    if ROUTER in self._children:
                        self._children[ROUTER].tell({"end": {"reason": reason}})
                case KeepDump():
                    self._keep_dump()
                case AnnounceReady():
                    self._announce_ready()
                case Say(level, message):
                    self._log.write(Record(level, message))
                case Exit():
                    self._exit = action
                case _:
                    assert_never(action)

    def _signal(self, action: Terminate | Kill | AskStacks, child: ChildId) -> None:
        process = self._children.get(child)
        if process is None:
            return  # it could not be started, which the supervisor is about to hear
        match action:
            case Terminate():
                process.terminate()
            case Kill():
                process.kill()
            case AskStacks():
                process.ask_stacks()

    def _start_workers(self, generation: int) -> None:
        self._endings.clear()
        self._progress.restart()
        if self._master_port is not None:
            self._master_port.release()
            self._master_port = None
        if self._plan.num_shard > 1:
            try:
                self._master_port = reserve_master_port(self._plan.master_port)
            except LauncherError as error:
                for rank in range(self._plan.num_shard):
                    self._not_started(ChildId(rank, generation), error)
                return
        number = None if self._master_port is None else self._master_port.number
        for rank in range(self._plan.num_shard):
            self._start(ChildId(rank, generation), self._plan.worker(rank, generation, number))

    def _start(self, child: ChildId, command: Command, passed: Sequence[int] = ()) -> None:
        self._log.debug(f"Starting {child}: {' '.join(command.argv)}")
        try:
            self._children[child] = Child(
                command,
                on_line=lambda stream, line: self._relay(child, stream, line),
                on_exit=lambda ending: self._events.put(Exited(child, ending)),
                passed=passed,
            )
        except OSError as error:
            variant = Variant.WEBSERVER_CANNOT_START if child == ROUTER else Variant.SHARD_CANNOT_START
            words = f"{command.argv[0]} cannot be started: {error.strerror}"
            self._not_started(child, LauncherError(variant, words))

    def _not_started(self, child: ChildId, error: LauncherError) -> None:
        """At the start that is the end, and nobody is served yet. Later it is a failure, and is tried again."""
        if self._supervisor.stage in (Stage.FETCHING, Stage.STARTING):
            raise error from None
        self._events.put(NotStarted(child, error.message))

    def _relay(self, child: ChildId, stream: str, line: str) -> None:
        """The router's lines have the log's form already; a worker's are written anew, with the rank."""
        if child.rank is None:
            self._log.raw_line(line)
            return
        record = worker_record(line, child.rank, stream)
        self._timeline.notice(record.fields)
        self._progress.notice(child.rank, record.fields)
        self._log.write(record)

    def _look(self, host: str, port: int) -> None:
        """At the router, from a thread of its own."""
        seen, works, router = look(host, port), False, self._children.get(ROUTER)
        if seen.works is not None:
            works = seen.works
            self._pulse.forget()
        elif router is not None:
            works = self._pulse.beats(router.pid)
        self._events.put(Looked(works, seen.hang))

    def _look_closely(self, host: str, port: int) -> None:
        """At a router of which one does not know whether it serves; from a thread of its own."""
        if self._supervisor.wants_health:
            self._events.put(HealthSeen(is_healthy(host, port)))
        work = work_seen(host, port) if self._supervisor.wants_work else None
        if work is not None:
            self._events.put(WorkSeen(work))

    def _look_failed(self, why: str) -> None:
        self._log.warn(f"A look at the router failed: {why}")

    def _keep_dump(self) -> None:
        """By now every rank that still runs has written its stacks."""
        if self._hang is None:
            return
        workers = {child.rank: process for child, process in self._children.items() if child.rank is not None}
        words = {rank: tuple(process.last_stderr_lines) for rank, process in workers.items()}
        try:
            path = self._dumps.write(self._hang, words)
            self._log.warn(f"Report of the hang, with the ranks' stacks: {path}")
        except OSError as error:
            self._log.warn(f"The report of the hang cannot be written: {error}")

    def _announce_ready(self) -> None:
        self._timeline.mark("ready")
        self._log.info("Start-up in seconds:", **self._timeline.durations())
        self._log.info(f"Serving {self._plan.model_id}: {self._plan.num_shard} shard(s){self._progress.summary()}")
        self._log.info(f"Ready: {self._plan.url}")

    def _remind(self, now: float) -> None:
        since = self._supervisor.waiting_since
        if since is not None:
            fetches = self._supervisor.stage is Stage.FETCHING
            at = self._fetched_so_far if fetches else self._progress.waiting_for()
            self._log.info(f"Not ready after {now - since:.0f} s: {at}")

    def _end_children(self) -> None:
        """Kills what an unexpected end leaves behind; after an orderly one there is nothing."""
        for child in self._children.values():
            child.kill()
        self._listener.close()
        if self._master_port is not None:
            self._master_port.release()

    def _raise_failure(self, exit: Exit) -> None:
        if exit.failure is None:
            return
        if exit.failure in (Variant.SHARD_CANNOT_START, Variant.SHARD_FAILED):
            self._show_last_words()
        raise LauncherError(exit.failure, exit.message)

    def _show_last_words(self) -> None:
        """The last lines that each rank of the last group wrote to stderr, together, at the end of the log."""
        for child, process in sorted(self._endings.items(), key=lambda item: str(item[0])):
            if child.rank is not None and process.last_stderr_lines:
                words = "\n".join(list(process.last_stderr_lines)[-_SHOWN_LAST_WORDS:])
                self._log.error(f"Rank {child.rank} wrote at its end:\n{words}")
