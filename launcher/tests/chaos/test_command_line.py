"""`millrace` and `millrace chaos` as commands."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from millrace_chaos.connection import Place
from millrace_chaos.run import FAULTS
from millrace_launcher import commands

from .lying_server import LyingServer


def test_millrace_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["--help"]) == 0
    assert "chaos URL" in capsys.readouterr().out
    assert commands.run([]) == 2
    assert commands.run(["dance"]) == 2


def test_millrace_serve_is_the_launcher() -> None:
    """As a process: it ends its own at once where threads go on, as some of other tests do."""

    def serve(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "millrace_launcher.commands", "serve", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = serve("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Usage: millrace serve [OPTIONS]" in shown.stdout
    assert serve("--num-shard", "many").returncode == 2


def test_help_names_every_fault_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from millrace_launcher import commands\n"
        "try: commands.run(['chaos', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'httpx', 'huggingface_hub', 'transformers'} & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"  {fault.name} " in shown for fault in FAULTS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ftp://x"], "no http or https URL"),
        (["http://127.0.0.1:1", "--faults", "kill,earthquake"], "no fault has the name earthquake"),
        (["http://127.0.0.1:1", "--faults", "kill"], "name the launcher's pid"),
        (["http://127.0.0.1:1", "--faults", "kill", "--launcher-pid", "1"], "no launcher with a router and ranks"),
        (["http://127.0.0.1:1", "--streams", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_is_said_with_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        commands.run(["chaos", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@contextmanager
def served(server: LyingServer) -> Iterator[str]:
    """Its URL; the server runs in a thread, for the command has an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    running = server.running()
    try:
        yield asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(end_connections(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def end_connections() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


SHORT = ["--streams", "4", "--distinct", "8", "--tokens", "12", "--rounds", "2", "--patience", "5"]


def test_the_exit_status_and_the_report_say_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = LyingServer()
    with served(server) as url:
        assert commands.run(["chaos", url, *SHORT, "--faults", "disconnect", "--json", "-"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["good"]
        assert [(phase["fault"], phase["strikes"]) for phase in told["phases"]] == [("none", 0), ("disconnect", 2)]
        assert all(phase["sent"] == phase["completed"] > 0 for phase in told["phases"])

        # The first nine answers are taken for true: eight requests, and one that tries whether there is a chat.
        server.requests = 0
        server.lie = lambda number, events: events if number <= 9 or number % 3 else events[:-1]
        report = tmp_path / "report.json"
        assert commands.run(["chaos", url, *SHORT, "--faults", "disconnect", "--json", str(report)]) == 1
        assert "stream ended without its last event" in capsys.readouterr().out
        assert not json.loads(report.read_text())["good"]

        server.refusal = b"HTTP/1.1 500 x\r\nContent-Length: 2\r\n\r\n{}"
        assert commands.run(["chaos", url, *SHORT]) == 3
        assert "undisturbed, the server does not answer as it should: status 500" in capsys.readouterr().err


def test_urls_are_taken_as_people_write_them() -> None:
    assert Place.of("127.0.0.1:3000") == Place("127.0.0.1", 3000)
    assert Place.of("https://host/base/") == Place("host", 443, tls=True, base="/base")
    assert b"POST /base/generate HTTP/1.1" in Place.of("http://h/base").post("/generate", b"{}")
    assert b"Authorization: Bearer k\r\n" in Place.of("http://h", "k").post("/generate", b"{}")
