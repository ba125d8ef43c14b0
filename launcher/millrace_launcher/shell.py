"""The supervisor's hands: processes, clock and queue around the pure machine in `supervisor.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import assert_never

from millrace_launcher.dump import DumpFolder
from millrace_launcher.errors import LauncherError, Variant
from millrace_launcher.health import Hang, Poller, find_hang, is_healthy
from millrace_launcher.logs import Log, Record, worker_record
from millrace_launcher.ports import ReservedPort, reserve_master_port
from millrace_launcher.process import Child, Ending
from millrace_launcher.progress import Progress
from millrace_launcher.resolve import Command, LaunchPlan
from millrace_launcher.supervisor import (
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
    Supervisor,
    Terminate,
)
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
class HealthSeen:
    ok: bool


@dataclass(frozen=True)
class StopRequested:
    pass


@dataclass(frozen=True)
class HangSeen:
    hang: Hang


Event = Exited | HealthSeen | HangSeen | StopRequested


class Shell:
    """Runs a plan until it ends. Events of all threads and of signal handlers arrive in one queue; `run` takes them one
    by one, asks the supervisor, and does what it says."""

    def __init__(
        self, plan: LaunchPlan, log: Log, timeline: Timeline, reminder_seconds: float = STILL_STARTING_SECONDS
    ) -> None:
        self._plan = plan
        self._log = log
        self._reminder_seconds = reminder_seconds
        self._timeline = timeline
        self._progress = Progress(plan.num_shard)
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._supervisor = Supervisor(plan.num_shard, plan.termination_timeout)
        self._children: dict[ChildId, Child] = {}
        self._endings: dict[ChildId, Child] = {}
        self._master_port: ReservedPort | None = None
        self._exit: Exit | None = None
        self._hang: Hang | None = None
        self._dumps = DumpFolder(plan.dump_folder)

    def stop(self) -> None:
        """Asks the launcher to stop; may be called from a signal handler."""
        self._events.put(StopRequested())

    def run(self) -> int:
        """Returns the exit status when everything has ended as asked; raises `LauncherError` when a child's failure
        ended it."""
        place = (self._plan.health_host, self._plan.port)
        health = Poller(lambda: self._events.put(HealthSeen(is_healthy(*place))), _HEALTH_SECONDS)
        hangs = Poller(lambda: self._report_hang(find_hang(*place)), _HANG_SECONDS)
        hangs.watch(True)
        remind_at = time.monotonic() + self._reminder_seconds
        try:
            self._perform(self._supervisor.begin(time.monotonic()))
            while self._exit is None:
                health.watch(self._supervisor.wants_health)
                event = self._next_event(remind_at)
                now = time.monotonic()
                self._perform(self._handle(event, now))
                if now >= remind_at:
                    remind_at = now + self._reminder_seconds
                    self._remind(now)
        finally:
            health.end()
            hangs.end()
            self._end_children()
        self._raise_failure(self._exit)
        return self._exit.status

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
            case HealthSeen(ok):
                return self._supervisor.health(ok, now)
            case HangSeen(hang):
                self._hang = hang
                return self._supervisor.rank_hangs(ChildId(hang.rank, hang.generation), hang.reason, now)
            case StopRequested():
                return self._supervisor.stop_requested(now)

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartRouter():
                    self._start(ROUTER, self._plan.router)
                case StartWorkers(generation):
                    self._start_workers(generation)
                case Terminate(child):
                    self._children[child].terminate()
                case Kill(child):
                    self._children[child].kill()
                case AskStacks(child):
                    self._children[child].ask_stacks()
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

    def _start_workers(self, generation: int) -> None:
        self._endings.clear()
        self._progress.restart()
        if self._master_port is not None:
            self._master_port.release()
            self._master_port = None
        if self._plan.num_shard > 1:
            self._master_port = reserve_master_port(self._plan.master_port)
        number = None if self._master_port is None else self._master_port.number
        for rank in range(self._plan.num_shard):
            self._start(ChildId(rank, generation), self._plan.worker(rank, generation, number))

    def _start(self, child: ChildId, command: Command) -> None:
        self._log.debug(f"Starting {child}: {' '.join(command.argv)}")
        try:
            self._children[child] = Child(
                command,
                on_line=lambda stream, line: self._relay(child, stream, line),
                on_exit=lambda ending: self._events.put(Exited(child, ending)),
            )
        except OSError as error:
            variant = Variant.WEBSERVER_CANNOT_START if child == ROUTER else Variant.SHARD_CANNOT_START
            raise LauncherError(variant, f"{command.argv[0]} cannot be started: {error.strerror}") from None

    def _relay(self, child: ChildId, stream: str, line: str) -> None:
        """The router's lines have the log's form already; a worker's are written anew, with the rank."""
        if child.rank is None:
            self._log.raw_line(line)
            return
        record = worker_record(line, child.rank, stream)
        self._timeline.notice(record.fields)
        self._progress.notice(child.rank, record.fields)
        self._log.write(record)

    def _report_hang(self, hang: Hang | None) -> None:
        if hang is not None:
            self._events.put(HangSeen(hang))

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
            self._log.info(f"Not ready after {now - since:.0f} s: {self._progress.waiting_for()}")

    def _end_children(self) -> None:
        """Kills what an unexpected end leaves behind; after an orderly one there is nothing."""
        for child in self._children.values():
            child.kill()
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
