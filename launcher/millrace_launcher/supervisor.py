"""Who is started, killed, awaited and when: a state machine without processes, clocks or signals.

Events come in as method calls that carry the time; actions come out as values, in the order to perform them. The shell
around it (`shell.py`) does what they say. Rules:

- While a model is fetched there is a router, which tells of it, and no worker. A fetch that fails ends everything.
- A worker that ends while starting ends everything (`ShardCannotStart`).
- A worker that ends while serving takes its whole group with it: the other ranks are killed, for their collectives can
  never complete, and a new group is started once all are gone. The router stays. `MAX_FAILURES_IN_A_ROW` failures
  with neither `HEALTHY_SECONDS` of health between them, nor a step that was computed, nor a request that was found
  guilty of one of them, end everything (`ShardFailed`).
- A rank that hangs is a rank that ends: its group is asked for its stacks first, which takes `STACKS_SECONDS`.
- A router that ends while starting ends everything (`WebserverFailed`). One that ends while serving is started again at
  once, while the workers keep their weights; its failures count with those of the workers. One that ends with status 0
  or `CUT`, whenever that is, was asked to by somebody else (`/admin/drain`): that ends everything, in order.
- A router that hangs is a router that ends: after `SILENT_LOOKS` looks in a row at one that neither answers nor does
  anything else, or says itself that it stands still, it is killed.
- A request to stop drains the router, also one not known to serve, then stops the workers; meanwhile, a lost group is
  restarted, because running requests need it. A second request kills what is left, unless it comes within
  `ECHO_SECONDS`: `timeout`, `uv run` and terminals deliver one wish twice.

Invariants: no group starts while a rank of an earlier one is alive; `Exit` is the last action, and comes when no child
is alive (or when one has survived SIGKILL for `KILL_SECONDS`, which only a stuck kernel brings about).
"""

from __future__ import annotations

from enum import Enum, auto
from signal import SIGTERM

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
from millrace_launcher.errors import Variant
from millrace_launcher.failures import MAX_FAILURES_IN_A_ROW, Failures, Work, backoff_seconds

HEALTHY_SECONDS = 5.0
WORKER_TERMINATION_SECONDS = 5.0
DRAIN_WITHOUT_WORKERS_SECONDS = 5.0
KILL_SECONDS = 10.0
# A router needs a moment to notice that its workers are gone: until then its health still speaks of the old ones.
SETTLE_SECONDS = 1.0
ECHO_SECONDS = 1.0
# A look takes five seconds when there is no answer: 15 s in all. Quick looks do not make it shorter.
SILENT_LOOKS = 3
SILENT_SECONDS = 10.0
STACKS_SECONDS = 0.5
# What a router gets beyond the time of its requests, to give each an end and its clients a moment to read it.
ROUTER_END_SECONDS = 6.0
# Exit statuses: requests were cut when the time to drain was up, or by a second request to stop.
CUT = 3
AT_ONCE = 4


class Stage(Enum):
    FETCHING = auto()  # the model is on its way
    STARTING = auto()
    SERVING = auto()
    DRAINING = auto()  # the router finishes what runs
    STOPPING = auto()  # workers are asked to end, or everything is
    STOPPED = auto()


class Supervisor:
    """`num_shard` ranks and a router; in seconds: `termination_timeout` is how long draining may take, `longest_wait`
    how long at most is waited before a restart."""

    def __init__(self, num_shard: int, termination_timeout: float, longest_wait: float) -> None:
        self.stage = Stage.STARTING
        self.alive: set[ChildId] = set()
        self.generation = 0
        self.failures = Failures()
        self._num_shard = num_shard
        self._termination_timeout = termination_timeout
        self._longest_wait = longest_wait
        self._actions: list[Action] = []
        self._exit = Exit(None)
        self._gave_up = False
        self._killed: set[ChildId] = set()
        self._deadline: float | None = None
        self._restart_at: float | None = None
        self._lost_at: float | None = None
        self._hung: tuple[ChildId, str, float] | None = None
        self._router_at: float | None = None
        self._stop_asked_at: float | None = None
        self._started_at = 0.0
        self._healthy_since: float | None = None
        self._num_silent = 0
        self._silent_since = 0.0

    @property
    def wants_health(self) -> bool:
        """Whether somebody should look at the router's health and call `health`."""
        return self.stage is Stage.STARTING or (self.stage is Stage.SERVING and self.failures.are_recent)

    @property
    def wants_work(self) -> bool:
        """Whether somebody should read the router's counters and call `work_seen`."""
        return self.stage in (Stage.SERVING, Stage.DRAINING) and self.failures.are_recent

    @property
    def waiting_since(self) -> float | None:
        """Since when a first group has been starting, or a lost one has not been replaced; None while neither is so."""
        if self.stage in (Stage.FETCHING, Stage.STARTING):
            return self._started_at
        return self._lost_at if self.stage is Stage.SERVING else None

    @property
    def next_deadline(self) -> float | None:
        """When `tick` must be called at the latest."""
        restart_at = None if self._workers_alive() else self._restart_at
        kill_at = None if self._hung is None else self._hung[2]
        times = [time for time in (self._deadline, restart_at, kill_at, self._router_at) if time is not None]
        return min(times, default=None)

    def begin(self, now: float) -> list[Action]:
        self._start_workers(now)
        self._act(StartRouter())
        self.alive.add(ROUTER)
        return self._taken()

    def begin_fetching(self, now: float) -> list[Action]:
        """In the place of `begin` where the model is not there yet; `fetched` or `fetch_failed` follows."""
        self.stage = Stage.FETCHING
        self._started_at = now
        self._act(StartRouter())
        self.alive.add(ROUTER)
        return self._taken()

    def fetched(self, now: float) -> list[Action]:
        if self.stage is Stage.FETCHING:
            self.stage = Stage.STARTING
            self._start_workers(now)
        return self._advanced(now)

    def fetch_failed(self, variant: Variant, message: str, now: float) -> list[Action]:
        if self.stage is Stage.FETCHING:
            self._exit = Exit(variant, message)
            self._stop_everything(now)
        return self._advanced(now)

    def child_exited(self, child: ChildId, how: str, now: float, status: int = 1) -> list[Action]:
        """`how` says in words what the child ended with; `status` is its exit status."""
        self.alive.discard(child)
        if child == ROUTER:
            self._killed.discard(child)
        if self.stage in (Stage.FETCHING, Stage.STARTING, Stage.SERVING, Stage.DRAINING):
            if child == ROUTER:
                self._router_exited(how, status, now)
            elif child.generation == self.generation and self._restart_at is None and not self._gave_up:
                self._worker_exited(child, how, now)
        return self._advanced(now)

    def rank_hangs(self, child: ChildId, why: str, now: float, *, every_step_fails: bool = False) -> list[Action]:
        """The router has found a rank that hangs, or fails whatever it computes. `child` of generation 0: one of the
        present group."""
        child = ChildId(child.rank, child.generation or self.generation)
        serves = self.stage in (Stage.STARTING, Stage.SERVING, Stage.DRAINING)
        is_lost = self._hung is not None or self._restart_at is not None or self._gave_up
        if serves and not is_lost and child.generation == self.generation and child in self.alive:
            self._hung = (child, f"it hung ({why})", now + STACKS_SECONDS)
            if every_step_fails:
                self.failures.suspect_device()
            for other in sorted(self._workers_alive(), key=str):
                self._act(AskStacks(other))
        return self._advanced(now)

    def health(self, ok: bool, now: float) -> list[Action]:
        """The router's answer; only asked for while `wants_health`."""
        if ok and self.stage is Stage.STARTING:
            self.stage = Stage.SERVING
            self._act(AnnounceReady())
        elif self.wants_health and self._restart_at is None and self._router_at is None:
            self._watch_recovery(ok, now)
        return self._advanced(now)

    def router_looked_at(self, works: bool, now: float) -> list[Action]:
        """Whether the router that serves gives a sign of life."""
        if works or self.stage is not Stage.SERVING or ROUTER not in self.alive:
            self._num_silent = 0
            return self._advanced(now)
        self._silent_since = self._silent_since if self._num_silent else now
        self._num_silent += 1
        if self._num_silent >= SILENT_LOOKS and now >= self._silent_since + SILENT_SECONDS:
            self._say("ERROR", "The router hangs: killing it")
            self._num_silent = 0
            self._kill(ROUTER)
        return self._advanced(now)

    def work_seen(self, work: Work, now: float) -> list[Action]:
        """The router's counters; only asked for while `wants_work`."""
        if self.failures.see(work):
            self._say("INFO", "A request was found that kills the workers, and has been refused: failures count anew")
        return self._advanced(now)

    def stop_requested(self, now: float) -> list[Action]:
        """The first request drains; a later one kills."""
        first = now if self._stop_asked_at is None else self._stop_asked_at
        self._stop_asked_at = first
        if self.stage is Stage.FETCHING:
            self._say("INFO", "Stopping before the server is ready")
            self._stop_everything(now)
        elif self.stage in (Stage.STARTING, Stage.SERVING):  # one that starts may serve before anybody has seen it
            self._say("INFO", f"Stopping: running requests may take {self._termination_timeout:g} s to end")
            self._drain(self._termination_timeout, now)
            if ROUTER not in self.alive:
                self._end_with(CUT)  # whoever waited for the next router
                self._stop_everything(now)
        elif self.stage in (Stage.DRAINING, Stage.STOPPING) and now >= first + ECHO_SECONDS:
            self._say("WARN", "Asked again to stop: killing what is left")
            self._end_with(AT_ONCE)
            self._kill_everything(now)
        return self._advanced(now)

    def tick(self, now: float) -> list[Action]:
        return self._advanced(now)

    def _router_exited(self, how: str, status: int, now: float) -> None:
        if self.stage is Stage.DRAINING or status in (0, CUT):
            if status not in (0, -SIGTERM):  # who dies of the signal had not begun to listen for it, nor to serve
                self._end_with(CUT)
            self._stop_everything(now)
            return
        self.failures.add()
        if self.stage in (Stage.FETCHING, Stage.STARTING) or self.failures.are_too_many:
            self._exit = Exit(Variant.WEBSERVER_FAILED, f"the router ended: {how}")
            self._stop_everything(now)
            return
        self._healthy_since = None
        self._lost_at = now if self._lost_at is None else self._lost_at
        self._router_at = now + backoff_seconds(self.failures.in_a_row, self._longest_wait)
        self._say("ERROR", f"The router ended: {how}. Starting it again; its streams are lost, the workers stay")

    def _worker_exited(self, child: ChildId, how: str, now: float) -> None:
        self._hung = None
        if self.stage is Stage.STARTING:
            self._exit = Exit(Variant.SHARD_CANNOT_START, f"{child} ended while starting: {how}")
            self._stop_everything(now)
            return
        self.failures.add()
        self._healthy_since = None
        self._lost_at = now if self._lost_at is None else self._lost_at
        self._kill_workers()
        if self.failures.are_too_many:
            in_a_row = f"{MAX_FAILURES_IN_A_ROW} failures in a row"
            self._give_up(f"{child} ended: {how}; {in_a_row}, no further restart", now)
            return
        wait = backoff_seconds(self.failures.in_a_row, self._longest_wait)
        self._restart_at = now + wait
        if self.stage is Stage.SERVING:
            self._deadline = now + KILL_SECONDS
        self._say(
            "ERROR",
            f"{child} ended: {how}. Restarting all ranks {f'in {wait:g} s' if wait else 'now'} "
            f"(failure {self.failures.fruitless} of at most {MAX_FAILURES_IN_A_ROW} in a row); requests wait",
        )

    def _give_up(self, reason: str, now: float) -> None:
        """Nothing can be computed any more: the router only has time to tell its clients."""
        self._gave_up = True
        self._restart_at = None
        self._exit = Exit(Variant.SHARD_FAILED, reason)
        seconds = min(self._termination_timeout, DRAIN_WITHOUT_WORKERS_SECONDS)
        if ROUTER in self.alive:
            self._act(TellEnd(reason))
        if self.stage is Stage.SERVING and ROUTER not in self.alive:
            self._stop_everything(now)
        elif self.stage is Stage.SERVING:
            self._drain(seconds, now)
        else:
            assert self._deadline is not None, "draining has an end"
            self._deadline = min(self._deadline, now + seconds)

    def _watch_recovery(self, ok: bool, now: float) -> None:
        if not ok or now < self._started_at + SETTLE_SECONDS:
            self._healthy_since = None
            return
        if self._healthy_since is None:
            self._healthy_since = now
        if self._lost_at is not None:
            self._say("INFO", f"Serving again {now - self._lost_at:.1f} s after the failure")
            self._lost_at = None
        if now - self._healthy_since >= HEALTHY_SECONDS:
            self.failures = Failures()

    def _end_with(self, status: int) -> None:
        """A failure keeps its own status."""
        if self._exit.failure is None:
            self._exit = Exit(None, status=status)

    def _drain(self, seconds: float, now: float) -> None:
        self.stage = Stage.DRAINING
        self._terminate(ROUTER)
        self._deadline = now + seconds + ROUTER_END_SECONDS

    def _stop_everything(self, now: float) -> None:
        self._hung = self._router_at = None
        self.stage = Stage.STOPPING
        self._restart_at = None
        for child in sorted(self.alive, key=str):
            self._terminate(child)
        self._deadline = now + WORKER_TERMINATION_SECONDS

    def _kill_everything(self, now: float) -> None:
        self._hung = self._router_at = None
        self.stage = Stage.STOPPING
        self._restart_at = None
        for child in sorted(self.alive, key=str):
            self._kill(child)
        self._deadline = now + KILL_SECONDS

    def _kill_workers(self) -> None:
        for child in sorted(self._workers_alive(), key=str):
            self._kill(child)

    def _workers_alive(self) -> set[ChildId]:
        return self.alive - {ROUTER}

    def _advanced(self, now: float) -> list[Action]:
        """What time and the gone children allow, after every event."""
        if self._restart_at is not None and now >= self._restart_at and not self._workers_alive():
            self._restart_at = None
            self._start_workers(now)
        if self._router_at is not None and now >= self._router_at:
            self._router_at = None
            self._started_at = now
            self._num_silent = 0
            self.failures.router_started()
            self._act(StartRouter())
            self.alive.add(ROUTER)
        if self._hung is not None and now >= self._hung[2]:
            child, how, _ = self._hung
            self._act(KeepDump(child))
            self._worker_exited(child, how, now)
        if self._deadline is not None and now >= self._deadline:
            self._deadline_passed(now)
        if self.stage is Stage.STOPPING and not self.alive:
            self._finish()
        return self._taken()

    def _deadline_passed(self, now: float) -> None:
        unkilled = self.alive - self._killed
        if self.stage is Stage.SERVING:  # no wait between groups is as long: it is one of the killed that is left
            self._give_up("a rank is still alive after SIGKILL, so its group cannot be restarted", now)
        elif self.stage is Stage.DRAINING and ROUTER in unkilled:
            self._say("WARN", "The router did not end in time: killing it")
            self._end_with(CUT)
            self._kill(ROUTER)
            self._deadline = now + KILL_SECONDS
        elif unkilled:
            self._say("WARN", f"Not ended in time, killing: {', '.join(sorted(map(str, unkilled)))}")
            self._kill_everything(now)
        else:
            self._say("ERROR", f"Still alive after SIGKILL: {', '.join(sorted(map(str, self.alive)))}")
            self._finish()

    def _finish(self) -> None:
        self.stage = Stage.STOPPED
        self._deadline = None
        self._act(self._exit)

    def _start_workers(self, now: float) -> None:
        self.generation += 1
        self._started_at = now
        if self.stage is Stage.SERVING:
            self._deadline = None
        self.alive |= {ChildId(rank, self.generation) for rank in range(self._num_shard)}
        self._act(StartWorkers(self.generation))

    def _terminate(self, child: ChildId) -> None:
        if child in self.alive and child not in self._killed:
            self._act(Terminate(child))

    def _kill(self, child: ChildId) -> None:
        if child in self.alive and child not in self._killed:
            self._killed.add(child)
            self._act(Kill(child))

    def _say(self, level: str, message: str) -> None:
        self._act(Say(level, message))

    def _act(self, action: Action) -> None:
        self._actions.append(action)

    def _taken(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
