"""The program `millrace`: one name for what the distribution offers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_USAGE = """\
Usage: millrace COMMAND [OPTIONS]

Commands:
  serve      serves a model; the same program as millrace-launcher (millrace serve --help)
  chaos URL  hurts a running server under a checked load, and tells what was lost (millrace chaos --help)
"""


def main() -> int:
    """The entry point; the caller ends the process with what it returns."""
    return run(sys.argv[1:])


def run(argv: Sequence[str]) -> int:
    match list(argv):
        case ["serve", *rest]:
            from millrace_launcher.main import serve

            return serve("millrace serve", rest)
        case ["chaos", *rest]:
            from millrace_chaos.main import main as chaos

            return chaos(rest)
        case ["-h" | "--help" | "help"]:
            sys.stdout.write(_USAGE)
            return 0
        case ["-V" | "--version"]:
            from millrace_launcher.help_text import version

            sys.stdout.write(version("millrace") + "\n")
            return 0
        case _:
            sys.stderr.write(_USAGE)
            return 2


if __name__ == "__main__":
    sys.exit(main())
