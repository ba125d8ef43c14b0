"""The real launcher with the fake worker and router."""

import os
import signal
import sys
from pathlib import Path

from millrace_launcher.main import run
from millrace_launcher.resolve import Programs

# Whatever started the tests, a hangup means what the test says.
signal.signal(signal.SIGHUP, signal.SIG_IGN if os.environ.get("FAKE_HANGUP") == "ignored" else signal.SIG_DFL)
here = Path(__file__).parent
programs = Programs(worker=(sys.executable, str(here / "worker.py")), router=(sys.executable, str(here / "router.py")))
sys.exit(run("millrace-launcher", sys.argv[1:], os.environ, programs))
