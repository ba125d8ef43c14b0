"""The real launcher with the fake worker and router."""

import os
import sys
from pathlib import Path

from millrace_launcher.main import run
from millrace_launcher.resolve import Programs

here = Path(__file__).parent
programs = Programs(worker=(sys.executable, str(here / "worker.py")), router=(sys.executable, str(here / "router.py")))
sys.exit(run("millrace-launcher", sys.argv[1:], os.environ, programs))
