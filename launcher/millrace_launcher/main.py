"""The program `millrace-launcher`: flags, model, children, exit status.

Heavy imports (huggingface_hub) happen only where they are needed; torch is never imported, so that a start takes
seconds and `--help` an instant.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from millrace_launcher.conversion import Converter
from millrace_launcher.errors import LauncherError, UsageError, Variant
from millrace_launcher.fetching import Say
from millrace_launcher.flags import FLAG_TABLE, Arguments
from millrace_launcher.hardware import look_at_machine, runtime_report
from millrace_launcher.help_text import help_text, usage, version
from millrace_launcher.hub import LocatedModel, ModelSource, at_hand, hub_cache, locate_model
from millrace_launcher.interrupts import Interrupts
from millrace_launcher.logs import Log, log_from_environment
from millrace_launcher.model_folder import check_override, folder_with_other_weights, has_only_pickled_weights
from millrace_launcher.notices import foreign_notices
from millrace_launcher.parser import Information, parse
from millrace_launcher.ports import listen_http, reserve_master_port
from millrace_launcher.private_folder import PrivateFolder, remove_stale_folders
from millrace_launcher.resolve import LaunchPlan, Programs, Settled, inherited, launch_plan, settle
from millrace_launcher.shell import Fetch, Shell
from millrace_launcher.timeline import Timeline

_MAX_SHOWN_CHARACTERS = 120


def main() -> int:
    """The entry point; the caller ends the process with what it returns."""
    return serve(Path(sys.argv[0]).name, sys.argv[1:])


def serve(program: str, argv: Sequence[str]) -> int:
    """Serves by these words of a command line and this process's environment."""
    return not_held(run(program, argv, os.environ))


def not_held(status: int) -> int:
    """The status. Ends the process now where Python would wait for others first: a download that was broken off has
    threads that go on to its end."""
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if any(not thread.daemon for thread in others):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


def run(program: str, argv: Sequence[str], environment: Mapping[str, str], programs: Programs | None = None) -> int:
    """Serves until stopped and returns the exit status. `programs` None: the real worker and router."""
    timeline = Timeline(time.monotonic)
    try:
        arguments = parse(argv, environment)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n\n{usage(program)}\n\nFor more information, try '--help'.\n")
        return error.exit_code
    if isinstance(arguments, Information):
        sys.stdout.write(help_text(program) if arguments is Information.HELP else version(program) + "\n")
        return 0
    log = log_from_environment(sys.stdout, environment, json_output=arguments.json_output)
    try:
        return Launch(arguments, environment, log, timeline).serve(programs)
    except LauncherError as error:
        sys.stderr.write(error.printed() + "\n")
        return error.exit_code


class Launch:
    """One start, from parsed flags to the end of the last child."""

    def __init__(self, arguments: Arguments, environment: Mapping[str, str], log: Log, timeline: Timeline) -> None:
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._timeline = timeline
        self._folder: PrivateFolder | None = None

    def serve(self, programs: Programs | None) -> int:
        """The exit status. Raises `LauncherError` for whatever keeps the server from starting or ends it unasked."""
        interrupts = Interrupts(self._remove_folder)
        # Where whoever started us ignored it, the system would collect our children before we know how they ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.ExitStack() as closing:
            closing.callback(self._remove_folder)
            settled, listener = self._settle()
            closing.callback(listener.close)
            programs = programs or find_programs(self._environment)
            for stale in remove_stale_folders():
                self._log.info(f"Removed {stale}, left by a launcher that was killed")
            self._folder = PrivateFolder.make(self._arguments.shard_uds_path, settled.num_shard)
            self._timeline.mark("resolve")
            shell = Shell(self._beginning(settled, programs, self._folder), listener, self._log, self._timeline)
            interrupts.hand_over(shell.stop)
            return shell.run()

    def _beginning(self, settled: Settled, programs: Programs, private: PrivateFolder) -> LaunchPlan | Fetch:
        """What to start; for a model that is not at hand, what to start meanwhile."""
        model = self._model_at_hand(private)
        if model is not None:
            self._timeline.mark("fetch")
            return self._plan(settled, programs, private, model)
        early = launch_plan(settled, programs, None, private.uds_prefix, self._childrens_environment())
        self._log.info(f"Starting the router; the model {settled.arguments.model_id} is fetched meanwhile")
        return Fetch(early, lambda say: self._plan(settled, programs, private, self._fetched(private, programs, say)))

    def _plan(self, settled: Settled, programs: Programs, private: PrivateFolder, model: LocatedModel) -> LaunchPlan:
        settled = settled.at_commit(model.commit)
        plan = launch_plan(settled, programs, model.folder, private.uds_prefix, self._childrens_environment())
        commit = f", commit {model.commit}" if model.commit else ""
        name = settled.arguments.model_id
        self._log.info(f"Starting {plan.num_shard} shard(s) of {name} ({model.folder}{commit}) and the router")
        return plan

    def _settle(self) -> tuple[Settled, socket.socket]:
        machine = look_at_machine(self._environment)
        self._log.info(f"Arguments: {shown_arguments(self._arguments)}")
        if self._arguments.env:
            self._log.info(runtime_report(machine))
        settled = settle(self._arguments, machine, self._environment)
        for notice in (*settled.notices, *foreign_notices(self._environment)):
            self._log.warn(notice)
        return self._with_port(settled)

    def _with_port(self, settled: Settled) -> tuple[Settled, socket.socket]:
        """The port is listened on from now on; 0 becomes a number. A taken --master-port is said now, too."""
        arguments = settled.arguments
        if settled.num_shard > 1:
            reserve_master_port(arguments.master_port).release()
        listener = listen_http(arguments.hostname, arguments.port)
        number = int(listener.getsockname()[1])
        return replace(settled, arguments=replace(arguments, port=number)), listener

    def _source(self) -> ModelSource:
        arguments = self._arguments
        source = ModelSource.from_environment(
            arguments.model_id, arguments.revision, arguments.huggingface_hub_cache, self._environment
        )
        return replace(source, with_code=arguments.trust_remote_code)

    def _model_at_hand(self, private: PrivateFolder) -> LocatedModel | None:
        """None: it has to be fetched or converted first."""
        model = at_hand(self._source())
        if model is None:
            return None
        weights = self._weights_of(model)
        return None if has_only_pickled_weights(weights) else joined(model, weights, private)

    def _fetched(self, private: PrivateFolder, programs: Programs, say: Say) -> LocatedModel:
        """The model, brought here and made readable."""
        source = self._source()
        model = locate_model(source, self._log, say)
        weights = self._weights_of(model)
        if has_only_pickled_weights(weights):
            converter = Converter(programs.converter, inherited(self._environment), hub_cache(source.cache))
            weights = converter.safetensors_of(weights, self._log, say)
        return joined(model, weights, private)

    def _weights_of(self, model: LocatedModel) -> Path:
        """The folder that its weights are read from. Raises `ArgumentValidation` or `DownloadError`."""
        if self._arguments.weights_cache_override is None:
            return model.folder
        weights = Path(self._arguments.weights_cache_override)
        check_override(weights)
        return weights

    def _childrens_environment(self) -> Mapping[str, str]:
        """Children write into pipes, so whether their lines may be coloured is decided here, once for all lines."""
        return {**self._environment, "LOG_COLORIZE": "1" if self._log.colour else "0"}

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.remove()


def joined(model: LocatedModel, weights: Path, private: PrivateFolder) -> LocatedModel:
    """The model with the weights of another folder, unless it is the same."""
    if weights == model.folder:
        return model
    return replace(model, folder=folder_with_other_weights(model.folder, weights, private.path / "model"))


def find_programs(environment: Mapping[str, str]) -> Programs:
    """The worker module of this Python; the router from MILLRACE_ROUTER, beside this Python, or on PATH."""
    python = (sys.executable, "-P", "-m")
    given = environment.get("MILLRACE_ROUTER")
    beside = Path(sys.executable).parent / "millrace-router"
    candidates = [given] if given else [str(beside), "millrace-router"]
    found = next((path for path in map(shutil.which, candidates) if path), None)
    if found is None:
        raise LauncherError(
            Variant.WEBSERVER_CANNOT_START,
            f"the router program was not found as {' or '.join(candidates)}; install the package millrace-router or "
            "set MILLRACE_ROUTER to the program's path",
        )
    return Programs(
        worker=(*python, "millrace_worker"), router=(found,), converter=(*python, "millrace_worker.convert")
    )


def shown_arguments(arguments: Arguments) -> str:
    """The flags that differ from their defaults and the model in any case; secrets hidden, long values cut."""
    words: list[str] = []
    for row in FLAG_TABLE:
        value = getattr(arguments, row.name)
        if value != row.default or row.name == "model_id":
            words.append(f"{row.name}={'***' if row.flag.secret else _cut(str(value))}")
    return ", ".join(words)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 1] + "…"
