"""The command line of `millrace chaos`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence

from millrace_chaos.connection import Place
from millrace_chaos.fault import Needs
from millrace_chaos.load import Manner
from millrace_chaos.processes import NotFoundError, Processes
from millrace_chaos.report import as_json, table
from millrace_chaos.run import FAULTS, URL_FAULTS, CannotRunError, Settings, chosen, run

_DESCRIPTION = """\
Puts a constant load on a server, checks every answer as it comes, and hurts the server meanwhile.

Each distinct request is sent once undisturbed first. Then many clients ask them over and over, streamed and not, by
/generate_stream, /generate and /v1: greedy, or sampled with a seed. Indices have to be consecutive, pieces of text have
to add up, every stream has to end exactly once, and ids have to be those of the undisturbed answer."""

_EPILOG = """\
By default only clients misbehave, which needs nothing but the URL. Faults of processes hurt the deployment for
everybody who uses it: name them with --faults, on the machine where the server runs.

exit status: 0 nothing was lost, duplicated or wrong, and health told the truth; 1 something was; 2 the command line
does not parse; 3 there was nothing to try, because the server does not even answer undisturbed.

examples:
  millrace chaos http://127.0.0.1:3000
  millrace chaos http://127.0.0.1:3000 --faults kill,stop --rounds 10 --json report.json"""


def main(argv: Sequence[str], program: str = "millrace chaos") -> int:
    """Runs and returns the exit status; argparse ends the process with 2 for what it does not understand."""
    parser = _parser(program)
    told = parser.parse_args(argv)
    names = URL_FAULTS if told.faults is None else tuple(name.strip() for name in told.faults.split(","))
    if told.faults == "all":
        names = tuple(fault.name for fault in FAULTS)
    try:
        faults = chosen(names)
        place = Place.of(told.url, told.api_key or os.environ.get("API_KEY"))
        hurting = [fault.name for fault in faults if fault.needs is not Needs.URL]
        processes = _processes(place, told.launcher_pid) if hurting else None
    except (ValueError, NotFoundError) as error:
        parser.error(str(error))
    if hurting:
        _say(f"warning: {', '.join(hurting)} will hurt the processes of {told.url} for everybody who uses it")
    manner = Manner(told.streams, told.patience)
    settings = Settings(
        place,
        names,
        manner,
        distinct=told.distinct,
        new_tokens=told.tokens,
        rounds={name: told.rounds for name in names if told.rounds},
        exact=True if told.exact else None,
        seed=told.seed,
        processes=processes,
    )
    return _run(settings, told.json)


def _run(settings: Settings, json_path: str | None) -> int:
    try:
        findings = asyncio.run(run(settings, _say))
    except CannotRunError as error:
        _say(f"error: {error}")
        return 3
    except KeyboardInterrupt:
        return 130
    for note in findings.notes:
        _say(f"note: {note}")
    text = json.dumps(as_json(findings.rows, findings.notes), indent=2) + "\n"
    if json_path == "-":
        sys.stdout.write(text)
    else:
        sys.stdout.write(table(findings.rows) + "\n")
    if json_path not in (None, "-"):
        with open(json_path, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
    return 0 if findings.is_good else 1


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _processes(place: Place, launcher: int | None) -> Processes:
    found = Processes.behind(place.port) if launcher is None else Processes(launcher)
    if not found.ranks() or found.router() is None:
        raise NotFoundError(f"process {found.launcher} is no launcher with a router and ranks")
    return found


def _parser(program: str) -> argparse.ArgumentParser:
    listed = "\n".join(f"  {fault.name:12} {fault.told} (needs {fault.needs.value})" for fault in FAULTS)
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION,
        epilog=f"faults:\n{listed}\n\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="the server, such as http://127.0.0.1:3000")
    parser.add_argument("--faults", metavar="NAME,…", help=f"which faults, or `all` (default: {','.join(URL_FAULTS)})")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="strikes of each fault (default: its own number)")
    parser.add_argument("--streams", type=_positive, default=64, metavar="N", help="clients at a time (default: 64)")
    parser.add_argument("--distinct", type=_positive, default=32, metavar="N", help="distinct requests (default: 32)")
    parser.add_argument("--tokens", type=_positive, default=120, metavar="N", help="longest answer (default: 120)")
    parser.add_argument(
        "--patience", type=float, default=300.0, metavar="SECONDS", help="longest silence, restarts too (default: 300)"
    )
    parser.add_argument("--exact", action="store_true", help="answers must be the undisturbed ones in any precision")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random here (default: 0)")
    parser.add_argument("--launcher-pid", type=int, metavar="PID", help="the launcher (default: found by the port)")
    parser.add_argument("--api-key", metavar="KEY", help="the server's key (default: API_KEY of the environment)")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON, too; `-`: only that, to stdout")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
