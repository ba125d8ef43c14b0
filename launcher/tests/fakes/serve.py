"""The real launcher with the fake worker and router."""

import functools
import os
import signal
import sys
from pathlib import Path

from millrace_launcher import main, shell
from millrace_launcher.resolve import Programs

# Whatever started the tests, a hangup means what the test says.
signal.signal(signal.SIGHUP, signal.SIG_IGN if os.environ.get("FAKE_HANGUP") == "ignored" else signal.SIG_DFL)
here = Path(__file__).parent
programs = Programs(worker=(sys.executable, str(here / "worker.py")), router=(sys.executable, str(here / "router.py")))
if "FAKE_REMINDER_SECONDS" in os.environ:
    main.Shell = functools.partial(shell.Shell, reminder_seconds=float(os.environ["FAKE_REMINDER_SECONDS"]))
sys.exit(main.run("millrace-launcher", sys.argv[1:], os.environ, programs))
