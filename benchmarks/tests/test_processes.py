"""What a measurement starts does not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import processes

ROOT = Path(__file__).resolve().parent.parent.parent
# Says the number of the process that it started.
MEASURING = """
import signal, sys, time
from pathlib import Path
from benchmarks import processes
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
processes.LOGS = Path(sys.argv[1])
with processes.started(processes.Program("sleeping", ["sleep", "300"], {})) as process:
    print(process.pid, flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_to_end_ends_what_it_started(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as measuring:
        assert measuring.stdout is not None
        started = int(measuring.stdout.readline())
        os.kill(started, 0)
        measuring.send_signal(number)
        assert measuring.wait(60) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)


def test_afterwards_signals_are_handled_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOGS", tmp_path)
    before = [signal.getsignal(number) for number in processes.ENDINGS]
    with processes.started(processes.Program("sleeping", ["sleep", "300"], {})):
        handlers = [signal.getsignal(number) for number in processes.ENDINGS]
        assert handlers == [was if was is signal.SIG_IGN else processes.leave for was in before]
    assert [signal.getsignal(number) for number in processes.ENDINGS] == before


def test_who_ignores_closed_terminals_goes_on_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOGS", tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with processes.started(processes.Program("sleeping", ["sleep", "300"], {})):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
