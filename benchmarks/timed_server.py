"""A server as `millrace-launcher` starts it, but for its worker, which writes down what the parts of its steps take.

`python -m benchmarks.timed_server FILE FLAGS` is the launcher, `python -m benchmarks.timed_server --worker FILE FLAGS`
the worker that it starts. For `benchmarks.step_profile`; one rank.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from millrace_launcher import main as launcher
from millrace_launcher.resolve import Programs
from millrace_worker import __main__ as worker
from millrace_worker import server
from millrace_worker.vectors import avoid_slow_vectors

WORKER = "--worker"


def launch(file: str, flags: list[str]) -> int:
    programs = launcher.find_programs(os.environ)
    timed = (sys.executable, "-m", "benchmarks.timed_server", WORKER, file)
    return launcher.run("timed_server", flags, os.environ, Programs(timed, programs.router, programs.converter))


def work(file: str, flags: list[str]) -> None:
    avoid_slow_vectors(os.environ)  # before numpy is here
    from benchmarks import step_parts

    recorder = step_parts.Recorder(step_parts.written_to(Path(file)))
    server.__dict__["StepStream"] = partial(step_parts.watched, recorder)
    sys.argv = [sys.argv[0], *flags]
    with recorder.watching():
        worker.main()


if __name__ == "__main__":
    if sys.argv[1] == WORKER:
        work(sys.argv[2], sys.argv[3:])
    sys.exit(launch(sys.argv[1], sys.argv[2:]))
