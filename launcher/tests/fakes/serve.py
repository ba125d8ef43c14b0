"""The real launcher with the fake worker and router."""

import errno
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

from millrace_launcher import health, main, process, shell, supervisor
from millrace_launcher.resolve import Programs

# Whatever started the tests, a hangup means what the test says.
signal.signal(signal.SIGHUP, signal.SIG_IGN if os.environ.get("FAKE_HANGUP") == "ignored" else signal.SIG_DFL)
here = Path(__file__).parent
programs = Programs(worker=(sys.executable, str(here / "worker.py")), router=(sys.executable, str(here / "router.py")))
if "FAKE_ANSWER_SECONDS" in os.environ:
    health.ANSWER_SECONDS = float(os.environ["FAKE_ANSWER_SECONDS"])
    supervisor.SILENT_SECONDS = 2 * health.ANSWER_SECONDS
if "FAKE_CHILDREN_ARE_IGNORED" in os.environ:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if "FAKE_FETCH" in os.environ:

    class PanicError(BaseException):
        """As one of a library in Rust, which is no `Exception`."""

    def panics(*_: object) -> None:
        raise PanicError(os.environ["FAKE_FETCH"])

    main.Launch._fetched = panics  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
if "FAKE_STACKS_SECONDS" in os.environ:
    supervisor.STACKS_SECONDS = float(os.environ["FAKE_STACKS_SECONDS"])
if "FAKE_STARTS" in os.environ:
    # "worker-0:1": the worker can be started once, as where no more processes are to be had later.
    kind, _, allowed = os.environ["FAKE_STARTS"].partition(":")
    program, starts, popen = kind.partition("-")[0], [], subprocess.Popen

    def scarce(argv, **options):  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
        if argv[1].endswith(f"{program}.py"):
            starts.append(argv)
            if len(starts) > int(allowed):
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return popen(argv, **options)

    process.subprocess.Popen = scarce  # pyright: ignore[reportAttributeAccessIssue]
if "FAKE_REMINDER_SECONDS" in os.environ:
    main.Shell = functools.partial(shell.Shell, reminder_seconds=float(os.environ["FAKE_REMINDER_SECONDS"]))
sys.exit(main.not_held(main.run("millrace-launcher", sys.argv[1:], os.environ, programs)))
