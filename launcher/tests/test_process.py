"""A child's output, lifeline and end, with small programs that write and end in awkward ways."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from millrace_launcher.process import Child, Ending
from millrace_launcher.resolve import Command

PATIENCE = 30


class Run:
    """Runs one Python program as a child and collects what comes from it."""

    def __init__(self, program: str) -> None:
        self.lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.ending: Ending | None = None
        self.lines_at_end = 0
        self._ended = threading.Event()
        self.child = Child(Command((sys.executable, "-c", program), dict(os.environ)), self._line, self._exit)

    def _line(self, stream: str, line: str) -> None:
        self.lines[stream].append(line)

    def _exit(self, ending: Ending) -> None:
        self.ending = ending
        self.lines_at_end = sum(map(len, self.lines.values()))
        self._ended.set()

    def wait(self) -> Ending:
        assert self._ended.wait(PATIENCE)
        assert self.ending is not None
        return self.ending


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_line_of_both_streams_arrives_before_the_end_also_the_unfinished_ones() -> None:
    run = Run("import sys; print('a\\n\\nb'); sys.stderr.write('x\\r\\ny'); sys.stdout.write('last')")
    assert run.wait() == Ending(0)
    assert run.lines == {"stdout": ["a", "", "b", "last"], "stderr": ["x", "y"]}
    assert run.lines_at_end == 6


def test_pieces_join_to_lines_wherever_they_are_cut() -> None:
    generator = random.Random(7)
    lines = ["".join(generator.choices("aé€😀 \t", k=generator.randrange(0, 200))) for _ in range(100)]
    data = "\n".join(lines).encode()
    program = f"""
import os, random
data, rest = bytes.fromhex({data.hex()!r}), random.Random(8)
while data:
    size = rest.randrange(1, 200)
    os.write(1, data[:size])
    data = data[size:]
"""
    run = Run(program)
    run.wait()
    assert run.lines["stdout"] == (lines if lines[-1] else lines[:-1])


def test_a_child_that_is_told_something_while_it_ends_is_still_seen_to_end() -> None:
    run = Run("import os, time; os.close(0); print('deaf', flush=True); time.sleep(0.3)")
    while not run.lines["stdout"]:
        time.sleep(0.01)
    run.child.tell({"news": "nobody reads this"})
    assert run.wait() == Ending(0)


def test_an_end_is_told_also_while_somebody_waits_to_say_something() -> None:
    """A process that left the group holds the pipe open, and nobody reads it."""
    heir = "subprocess.Popen(['sleep', '20'], start_new_session=True, stdout=-3, stderr=-3).pid"
    run = Run(f"import subprocess, time; print({heir}, flush=True); time.sleep(0.5)")
    while not run.lines["stdout"]:
        time.sleep(0.01)
    threading.Thread(target=run.child.tell, args=({"news": "x" * 1_000_000},), daemon=True).start()
    try:
        assert run.wait() == Ending(0)
    finally:
        os.kill(int(run.lines["stdout"][0]), signal.SIGKILL)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_child_whose_threads_cannot_be_had_is_none(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real_popen, real_start, num_starts = subprocess.Popen, threading.Thread.start, iter(range(1, 9))

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real_popen(*arguments, **options))
        return started[-1]

    def start(thread: threading.Thread) -> None:
        if next(num_starts) == nth:
            raise RuntimeError("can't start new thread")
        real_start(thread)

    monkeypatch.setattr("millrace_launcher.process.subprocess.Popen", popen)
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="can't start new thread"):
        Run("import time; time.sleep(600)")
    (process,) = started
    assert process.returncode == -signal.SIGKILL


def test_both_streams_are_read_at_the_same_time() -> None:
    """More than a pipe holds on each, in turns: reading one to its end before the other would block the child."""
    run = Run(
        "import os\nfor _ in range(40):\n    os.write(2, b'e' * 9999 + b'\\n')\n    os.write(1, b'o' * 9999 + b'\\n')"
    )
    assert run.wait() == Ending(0)
    assert [len(lines) for lines in run.lines.values()] == [40, 40]
    assert len(run.child.last_stderr_lines) == 40


def test_a_line_without_end_is_cut_instead_of_kept() -> None:
    run = Run("import os\nfor _ in range(48):\n    os.write(1, b'x' * 65536)")
    run.wait()
    assert sum(map(len, run.lines["stdout"])) == 48 * 65536
    assert len(run.lines["stdout"]) >= 2


def test_bytes_that_are_no_text_arrive_as_replacement_characters() -> None:
    run = Run("import os; os.write(1, b'\\xff\\xfe ok\\n')")
    run.wait()
    assert run.lines["stdout"] == ["\ufffd\ufffd ok"]


@pytest.mark.parametrize(
    ("program", "ending", "words"),
    [
        ("raise SystemExit(7)", Ending(7), "exit status 7"),
        ("import os; os.kill(os.getpid(), 9)", Ending(-9), "killed by SIGKILL"),
        ("import os; os.abort()", Ending(-6), "killed by SIGABRT"),
    ],
)
def test_how_a_child_ended_is_said_in_words(program: str, ending: Ending, words: str) -> None:
    found = Run(program).wait()
    assert found == ending
    assert str(found) == words


def test_real_time_signals_have_no_name_but_a_number() -> None:
    assert str(Ending(-(signal.SIGRTMIN + 3))) == f"killed by signal {signal.SIGRTMIN + 3}"


def test_the_lifeline_is_open_while_the_launcher_lives() -> None:
    run = Run("import select, sys\nprint(select.select([0], [], [], 0)[0], flush=True)\nsys.stdin.read()")
    while not run.lines["stdout"]:
        time.sleep(0.01)
    run.child.kill()
    run.wait()
    assert run.lines["stdout"] == ["[]"]


def test_a_child_has_a_process_group_of_its_own() -> None:
    run = Run("import os; print(os.getpgid(0) == os.getpid(), os.getpgid(0) != os.getpgid(os.getppid()))")
    run.wait()
    assert run.lines["stdout"] == ["True True"]


def test_what_a_child_leaves_behind_ends_with_it_and_does_not_hold_its_output() -> None:
    """The grandchild holds the write end of both pipes."""
    run = Run("import subprocess; print(subprocess.Popen(['sleep', '600']).pid)")
    assert run.wait() == Ending(0)
    (pid,) = map(int, run.lines["stdout"])
    deadline = time.monotonic() + PATIENCE
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


def test_signals_after_the_end_reach_nobody() -> None:
    run = Run("pass")
    run.wait()
    run.child.terminate()
    run.child.kill()


def test_terminate_is_sigterm_to_the_child() -> None:
    program = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(5))\nprint('set', flush=True)\nsignal.pause()"
    run = Run(program)
    while not run.lines["stdout"]:
        time.sleep(0.01)
    run.child.terminate()
    assert run.wait() == Ending(5)


@pytest.mark.parametrize("is_reaped", [False, True])
def test_who_is_gone_is_told_nothing(is_reaped: bool) -> None:
    """Neither one that has closed its end of the pipe and goes on, nor one that has ended: nobody is hindered."""
    run = Run("import os, time; os.close(0); print('closed', flush=True)" + ("" if is_reaped else "; time.sleep(600)"))
    try:
        if is_reaped:
            run.wait()
        else:
            deadline = time.monotonic() + PATIENCE
            while not run.lines["stdout"] and time.monotonic() < deadline:
                time.sleep(0.01)
            assert run.lines["stdout"] == ["closed"]
        for _ in range(3):  # what could not be written is not kept for the next time either
            run.child.tell({"end": {"reason": "x" * 100_000}})
    finally:
        run.child.kill()
    run.wait()


def test_a_child_reads_what_it_is_told_line_by_line() -> None:
    run = Run("import sys; print(sys.stdin.readline(), sys.stdin.readline(), flush=True)")
    run.child.tell({"progress": {"words": "é"}})
    run.child.tell({"end": {}})
    assert run.wait() == Ending(0)
    assert run.lines["stdout"][0] == '{"progress": {"words": "\\u00e9"}}'
    assert '{"end": {}}' in run.lines["stdout"][1]
