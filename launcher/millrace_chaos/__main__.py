"""`python -m millrace_chaos URL`."""

from __future__ import annotations

import sys

from millrace_chaos.main import main

sys.exit(main(sys.argv[1:]))
