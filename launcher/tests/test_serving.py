"""The whole launcher with fake workers and a fake router: real processes, sockets and signals, real faults."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from millrace_launcher.supervisor import AT_ONCE, CUT, ECHO_SECONDS

from launcher.tests.fakes.launched import PATIENCE, Launcher, is_running, until
from launcher.tests.fakes.stand_in_hub import Repository, StandInHub
from worker.tests.ports import free_port


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    launchers: list[Launcher] = []

    def start_one(*flags: str, **environment: str) -> Launcher:
        launchers.append(Launcher(tmp_path / str(len(launchers)), *flags, **environment))
        return launchers[-1]

    yield start_one
    for launcher in launchers:
        for pid in [launcher.process.pid, *launcher.pids()]:
            if is_running(pid):
                with suppress(ProcessLookupError):  # the launcher's end is its children's too
                    os.kill(pid, signal.SIGKILL)
        launcher.process.wait()


Start = Callable[..., Launcher]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_serves_until_asked_to_stop(start: Start, number: int) -> None:
    launcher = start("--num-shard", "2").ready()
    assert [note["env"]["RANK"] for note in launcher.notes("worker")].count("1") == 1
    assert launcher.stop(number) == 0
    assert "router: draining" in launcher.lines
    assert launcher.errors == []
    assert launcher.leaves_nothing()


@pytest.mark.parametrize("hangup", ["ignored", "default"])
def test_under_nohup_a_hangup_stays_ignored(start: Start, hangup: str) -> None:
    launcher = start(FAKE_HANGUP=hangup).ready()
    status = Path(f"/proc/{launcher.process.pid}/status").read_text()
    (ignored,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")]
    assert bool(int(ignored, 16) >> (signal.SIGHUP - 1) & 1) == (hangup == "ignored")


def test_the_start_is_told_as_a_timeline_and_workers_logs_carry_their_rank(start: Start) -> None:
    launcher = start("--num-shard", "2").ready()
    (timeline,) = [line for line in launcher.lines if "Start-up in seconds" in line]
    phases = [word.partition("=")[0] for word in timeline.split() if "=" in word]
    assert phases == ["resolve", "fetch", "load", "prepare", "ready", "total"]
    loaded = {line for line in launcher.lines if "model loaded" in line}
    prefix = "2026-01-02T03:04:05.678901Z  INFO shard-manager{rank="
    assert loaded == {f"{prefix}{rank}}}: millrace_worker: model loaded load_ms=5" for rank in (0, 1)}
    assert any(line.endswith(f"Ready: http://0.0.0.0:{launcher.router()['flags']['port']}") for line in launcher.lines)


def test_the_start_tells_what_is_served_and_nothing_at_length(start: Start) -> None:
    name = "n" * 5000
    launcher = start("--served-model-name", name, API_KEY="s3cret").ready()
    model = launcher.router()["flags"]["model-path"]
    assert f"Arguments: model_id={model}, served_model_name=('nnn" in launcher.log
    assert f"Starting 1 shard(s) of {model} ({model}) and the router" in launcher.log
    ends = [
        f"Serving {model}: 1 shard(s), device cpu, dtype float32",
        f"http://0.0.0.0:{launcher.router()['flags']['port']}",
    ]
    serving, ready = ([number for number, line in enumerate(launcher.lines) if line.endswith(end)] for end in ends)
    assert (len(serving), len(ready)) == (1, 1)
    assert serving < ready
    assert max(map(len, launcher.lines)) < 600


def test_a_start_that_hangs_says_what_it_waits_for(start: Start) -> None:
    launcher = start("--num-shard", "2", FAKE_WORKER="hang-in-load", FAKE_REMINDER_SECONDS="0.5")
    until(lambda: "rank 1 is loading the weights" in launcher.log, "the reminder")
    assert "Not ready after " in launcher.log


def test_a_router_that_hangs_is_said_to(start: Start) -> None:
    launcher = start(FAKE_ROUTER="never-ready", FAKE_REMINDER_SECONDS="0.5")
    until(lambda: "all ranks are prepared, the router does not answer /health" in launcher.log, "the reminder")


@pytest.mark.parametrize(("value", "coloured"), [("1", True), ("0", False), ("", False)])
def test_colour_is_decided_once_for_the_launcher_and_its_children(start: Start, value: str, coloured: bool) -> None:
    launcher = start(LOG_COLORIZE=value).ready()
    children = [launcher.router(), launcher.workers(0)[0]]
    assert [note["env"]["LOG_COLORIZE"] for note in children] == ["01"[coloured]] * 2
    own = [line for line in launcher.lines if "millrace_" in line]
    assert all(("\x1b[" in line) == coloured for line in own)


def test_json_logs_are_one_object_a_line(start: Start) -> None:
    launcher = start("--json-output").ready()
    assert launcher.stop() == 0
    entries = [json.loads(line) for line in launcher.lines if not line.startswith("router: ")]
    loaded = next(entry for entry in entries if entry["fields"]["message"] == "model loaded")
    assert loaded["span"] == {"rank": 0, "name": "shard-manager"}
    assert all({"timestamp", "level", "fields", "target"} <= set(entry) for entry in entries)


def test_a_killed_rank_is_replaced_with_its_group_while_the_router_stays(start: Start) -> None:
    launcher = start("--num-shard", "2").ready()
    router = launcher.router()["pid"]
    first = [launcher.workers(rank)[0] for rank in (0, 1)]
    os.kill(first[1]["pid"], signal.SIGKILL)
    until(lambda: "Serving again" in launcher.log, "recovery")
    assert not any(is_running(note["pid"]) for note in first)
    second = [launcher.workers(rank)[1] for rank in (0, 1)]
    assert all(is_running(note["pid"]) for note in second)
    ports = [note["env"]["MASTER_PORT"] for note in (*first, *second)]
    assert ports[0] == ports[1] != ports[2] == ports[3]
    assert is_running(router)
    assert len(launcher.notes("router")) == 1
    assert "rank 1 ended: killed by SIGKILL" in launcher.log
    assert launcher.stop() == 0
    assert launcher.leaves_nothing()


@pytest.mark.parametrize("can_write", [True, False])
def test_a_hang_is_reported_and_the_group_replaced_whether_the_report_can_be_kept_or_not(
    start: Start, tmp_path: Path, can_write: bool
) -> None:
    dumps = tmp_path / "dumps"
    if not can_write:
        dumps.touch()  # a file where the folder should be
    launcher = start("--num-shard", "2", "--dump-folder", str(dumps), FAKE_STACKS_SECONDS="2").ready()
    (launcher.notes_folder / "hang").touch()
    until(lambda: len(launcher.workers(0)) == 2 and len(launcher.workers(1)) == 2, "a new group")
    (launcher.notes_folder / "hang").unlink()
    assert len(launcher.notes("router")) == 1, "the router stays"
    if can_write:
        (report,) = dumps.iterdir()
        assert "rank 1 of group 1 hung: it stands still" in report.read_text()
        assert report.read_text().count("stacks of this rank") == 2
    else:
        until(lambda: "report of the hang cannot be written" in launcher.log, "a warning")
    assert launcher.stop() == 0


def test_a_group_that_dies_again_and_again_ends_the_launcher(start: Start) -> None:
    launcher = start(FAKE_WORKER="die-when-restarted").ready()
    os.kill(launcher.workers(0)[0]["pid"], signal.SIGKILL)
    assert launcher.ended() == 1
    assert launcher.errors[-1].startswith('Error: ShardFailed("rank 0 ended: exit status 7; 5 failures in a row')
    assert len(launcher.workers(0)) == 5
    assert "5 failures in a row" in launcher.told()[-1]["end"]["reason"]
    assert "router: draining" in launcher.lines
    assert launcher.leaves_nothing()


def test_children_are_seen_to_end_also_under_a_parent_that_ignores_its_own(start: Start) -> None:
    launcher = start(FAKE_CHILDREN_ARE_IGNORED="1").ready()
    os.kill(launcher.workers(0)[0]["pid"], signal.SIGKILL)
    until(lambda: len(launcher.workers(0)) == 2, "a new group")
    assert launcher.stop() == 0


def test_a_worker_that_cannot_start_ends_everything_with_its_last_words(start: Start) -> None:
    launcher = start("--num-shard", "2", FAKE_WORKER="die-at-start")
    assert launcher.ended() == 1
    (error,) = launcher.errors
    assert error == (
        'Error: ShardCannotStart("rank 0 ended while starting: exit status 1: the weights are made of cheese")'
    )
    last_words = launcher.lines.index("Error: the weights are made of cheese")
    assert launcher.lines[last_words - 1] == "Traceback of this rank"
    assert "Rank 0 wrote at its end" in launcher.lines[last_words - 2]
    assert launcher.leaves_nothing()


def test_a_router_that_ends_takes_the_workers_along(start: Start) -> None:
    launcher = start(FAKE_ROUTER="die-at-start")
    assert launcher.ended() == 1
    assert launcher.errors == ['Error: WebserverFailed("the router ended: exit status 9: the router has a headache")']
    assert "error: the router has a headache" in launcher.lines
    assert launcher.leaves_nothing()


@pytest.mark.parametrize("form", ["text", "coloured", "json"])
def test_a_router_that_logs_an_error_and_ends_is_quoted(start: Start, form: str) -> None:
    launcher = start(FAKE_ROUTER=f"log-{form}-and-die")
    assert launcher.ended() == 1
    assert launcher.errors == [
        'Error: WebserverFailed("the router ended: exit status 1: `max_total_tokens` is 9, which is \\"too\\" large")'
    ]


def test_a_router_that_is_killed_while_serving_is_started_again_and_the_workers_stay(start: Start) -> None:
    launcher = start().ready()
    os.kill(launcher.router()["pid"], signal.SIGKILL)
    until(lambda: "Serving again" in launcher.log, "another router")
    assert (len(launcher.notes("router")), len(launcher.workers(0))) == (2, 1)
    assert launcher.stop() == 0
    assert launcher.leaves_nothing()


@pytest.mark.parametrize("how", ["stopped", "says so"])
def test_a_router_that_hangs_is_replaced_and_the_workers_stay(start: Start, how: str) -> None:
    launcher = start(FAKE_ANSWER_SECONDS="0.4").ready()
    router = launcher.router()["pid"]
    if how == "stopped":
        os.kill(router, signal.SIGSTOP)
    else:
        (launcher.notes_folder / f"still-{router}").touch()
    until(lambda: "Serving again" in launcher.log, "another router")
    assert "The router hangs: killing it" in launcher.log
    assert (len(launcher.notes("router")), len(launcher.workers(0))) == (2, 1)
    assert launcher.stop() == 0
    assert launcher.leaves_nothing()


def test_a_router_that_has_no_time_for_questions_is_left_alone(start: Start) -> None:
    launcher = start(FAKE_ANSWER_SECONDS="0.2").ready()
    (launcher.notes_folder / "busy").touch()
    time.sleep(3)
    assert is_running(launcher.router()["pid"])
    assert len(launcher.notes("router")) == 1
    assert "hangs" not in launcher.log


def test_a_router_that_is_killed_again_and_again_ends_everything(start: Start) -> None:
    launcher = start().ready()
    for number in range(1, 6):
        routers = until(lambda number=number: len(found := launcher.notes("router")) == number and found, "a router")
        os.kill(routers[-1]["pid"], signal.SIGKILL)
    assert launcher.ended() == 1
    assert launcher.errors == ['Error: WebserverFailed("the router ended: killed by SIGKILL")']
    assert launcher.leaves_nothing()


def test_a_router_that_will_not_drain_is_killed_at_the_timeout(start: Start) -> None:
    launcher = start("--graceful-termination-timeout", "1", FAKE_ROUTER="ignore-term").ready()
    assert launcher.stop() == CUT
    assert "The router did not end in time" in launcher.log
    assert launcher.leaves_nothing()


def test_workers_that_will_not_end_are_killed(start: Start) -> None:
    launcher = start(FAKE_WORKER="ignore-term").ready()
    assert launcher.stop() == 0
    assert "Not ended in time, killing: rank 0" in launcher.log
    assert launcher.leaves_nothing()


def test_a_second_signal_kills_at_once(start: Start) -> None:
    launcher = start("-g", "600", FAKE_ROUTER="ignore-term", FAKE_WORKER="ignore-term").ready()
    launcher.process.send_signal(signal.SIGTERM)
    until(lambda: "Stopping: running requests may take 600 s" in launcher.log, "draining")
    time.sleep(ECHO_SECONDS)
    assert launcher.stop() == AT_ONCE
    assert launcher.leaves_nothing()


def test_a_stop_while_starting_ends_with_status_0(start: Start) -> None:
    """The router first: it may serve before the launcher has seen that it does."""
    launcher = start("--num-shard", "2", FAKE_ROUTER="never-ready")
    until(lambda: "router: listening" in launcher.lines and launcher.log.count("prepared") == 2, "the children")
    assert launcher.stop() == 0
    assert "Ready: " not in launcher.log
    assert "router: workers at its end: True" in launcher.lines
    assert launcher.leaves_nothing()


def test_no_child_outlives_a_launcher_that_is_killed(start: Start) -> None:
    launcher = start("--num-shard", "2").ready()
    assert len(launcher.pids()) == 3
    launcher.process.kill()
    until(lambda: not any(map(is_running, launcher.pids())), "the end of all children")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The test's own, with room for a socket's name in its path: in /tmp, other tests' launchers would clear up."""
    with tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp") as folder:
        yield Path(folder)


def test_the_folder_of_a_killed_launcher_is_removed_by_the_next(start: Start, short_folder: Path) -> None:
    shared = short_folder
    living, killed = start(TMPDIR=str(shared)).ready(), start(TMPDIR=str(shared)).ready()
    folders = [Path(launcher.router()["flags"]["worker-uds-path"]).parent for launcher in (living, killed)]
    killed.process.kill()
    killed.ended()
    assert all(folder.is_dir() for folder in folders)
    following = start(TMPDIR=str(shared)).ready()
    assert [folder.is_dir() for folder in folders] == [True, False]
    assert f"Removed {folders[1]}" in following.log
    assert (living.stop(), following.stop()) == (0, 0)
    assert list(shared.iterdir()) == []


def test_what_a_worker_started_ends_with_it(start: Start) -> None:
    launcher = start(FAKE_WORKER="has-child").ready()
    worker = launcher.workers(0)[0]
    assert is_running(worker["child"])
    os.kill(worker["pid"], signal.SIGKILL)
    until(lambda: len(launcher.workers(0)) == 2, "the second worker")
    until(lambda: not is_running(worker["child"]), "the end of the worker's child")
    assert launcher.stop() == 0
    assert launcher.leaves_nothing()


def test_two_launchers_do_not_meet(start: Start) -> None:
    first, second = start("--num-shard", "2"), start("--num-shard", "2")
    first.ready()
    second.ready()
    seen = []
    for launcher in (first, second):
        flags = launcher.router()["flags"]
        prefix = Path(flags["worker-uds-path"])
        assert prefix.parent.stat().st_mode & 0o777 == 0o700
        seen.append({flags["port"], str(prefix), launcher.workers(0)[0]["env"]["MASTER_PORT"]})
    assert not seen[0] & seen[1]
    assert first.stop() == 0
    assert second.process.poll() is None
    assert second.stop() == 0


def test_a_port_in_use_is_refused_before_anything_starts(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        launcher = start("--hostname", "127.0.0.1", "--port", port)
        assert launcher.ended() == 1
    assert launcher.errors[0].startswith(
        f'Error: WebserverFailed("cannot listen on 127.0.0.1 port {port}: it is in use'
    )
    assert launcher.pids() == []


def test_the_port_of_another_launcher_is_refused_even_before_its_router_listens(start: Start) -> None:
    first = start().ready()
    port = first.router()["flags"]["port"]
    os.kill(first.router()["pid"], signal.SIGSTOP)
    second = start("--port", port)
    assert second.ended() == 1
    assert "it is in use" in second.errors[0]


def test_a_master_port_in_use_is_refused_before_anything_starts(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        launcher = start("--num-shard", "2", "--master-port", str(taken.getsockname()[1]))
        assert launcher.ended() == 1
    assert launcher.errors[0].startswith('Error: ArgumentValidation("`--master-port`')
    assert launcher.pids() == []


def test_a_group_that_cannot_be_started_again_is_tried_again_until_it_can(start: Start) -> None:
    """Its port is taken by another program between two groups; the router lives on, and serves when it is free."""
    port = free_port()
    launcher = start("--num-shard", "2", "--master-port", str(port)).ready()
    with socket.create_server(("127.0.0.1", port)):
        os.kill(launcher.workers(0)[0]["pid"], signal.SIGKILL)
        until(lambda: f"`--master-port` {port} is in use" in launcher.log, "a start that fails")
    until(lambda: "Serving again" in launcher.log, "another group")
    assert [len(launcher.workers(rank)) for rank in (0, 1)] == [2, 2]
    assert len(launcher.notes("router")) == 1
    assert launcher.stop() == 0
    assert launcher.leaves_nothing()


@pytest.mark.parametrize("kind", ["router", "worker-0"])
def test_a_program_that_cannot_be_started_again_is_a_failure_in_a_row(start: Start, kind: str) -> None:
    launcher = start("--max-restart-wait-seconds", "0", FAKE_STARTS=f"{kind}:1").ready()
    os.kill(launcher.notes(kind)[0]["pid"], signal.SIGKILL)
    assert launcher.ended() == 1
    variant = "WebserverFailed" if kind == "router" else "ShardFailed"
    assert launcher.errors[-1].startswith(f'Error: {variant}("')
    assert "cannot be started: Resource temporarily unavailable" in launcher.errors[-1]
    if kind != "router":
        assert "router: draining" in launcher.lines, "its streams get an end"
    assert launcher.leaves_nothing()


def test_a_given_master_port_is_used(start: Start) -> None:
    port = str(free_port())
    launcher = start("--num-shard", "2", "--master-port", port).ready()
    assert launcher.workers(1)[0]["env"]["MASTER_PORT"] == port


def test_one_socket_prefix_serves_one_launcher_at_a_time(start: Start, tmp_path: Path) -> None:
    prefix = str(tmp_path / "sockets")
    first = start("--shard-uds-path", prefix).ready()
    second = start("--shard-uds-path", prefix)
    assert second.ended() == 1
    assert "in use by another launcher" in second.errors[0]
    assert first.stop() == 0
    third = start("--shard-uds-path", prefix).ready()
    assert third.router()["flags"]["worker-uds-path"] == prefix


def test_a_socket_prefix_that_is_too_long_is_refused(start: Start, tmp_path: Path) -> None:
    launcher = start("--shard-uds-path", str(tmp_path / ("x" * 120)))
    assert launcher.ended() == 1
    assert "`--shard-uds-path`" in launcher.errors[0]


def test_the_key_is_in_no_command_line_and_no_workers_environment(start: Start) -> None:
    launcher = start(API_KEY="s3cret-key", HF_TOKEN="hf_s3cret", LOG_LEVEL="debug").ready()
    worker, router = launcher.workers(0)[0], launcher.router()
    assert router["env"]["API_KEY"] == "s3cret-key"
    assert "HF_TOKEN" not in router["env"]
    everything_else = json.dumps([worker, router["argv"]]) + launcher.log
    assert "s3cret" not in everything_else


def test_the_environment_report_names_what_runs_but_no_value_of_it(start: Start) -> None:
    launcher = start("--env", HF_TOKEN="hf_s3cret").ready()
    assert "Runtime environment:" in launcher.log
    assert "Packages: millrace" in launcher.log
    assert "s3cret" not in launcher.log


def test_other_weights_are_served_from_a_folder_of_links(start: Start, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "other.safetensors").write_text("other")
    launcher = start("--weights-cache-override", str(weights)).ready()
    model = Path(launcher.router()["flags"]["model-path"])
    assert {path.name for path in model.iterdir()} == {"config.json", "tokenizer.json", "other.safetensors"}
    assert launcher.stop() == 0
    assert launcher.leaves_nothing()
    assert (weights / "other.safetensors").exists()


def test_a_model_from_the_hub_is_fetched_and_served(start: Start, tmp_path: Path) -> None:
    hub = StandInHub()
    hub.repositories["some/model"] = Repository(
        {"config.json": b"{}", "tokenizer.json": b"{ }", "model.safetensors": b"weights"}
    )
    cache = tmp_path / "cache"
    flags = ("--model-id", "some/model", "--huggingface-hub-cache", str(cache))
    launcher = start(*flags, HF_ENDPOINT=hub.url).ready()
    router = launcher.router()
    assert router["flags"]["model-id"] == "some/model"
    assert "--await-model" in router["argv"]
    assert "model-path" not in router["flags"]
    told = launcher.told()
    assert any("downloading" in news["progress"]["words"] for news in told[:-1])
    assert told[-1]["model"]["revision"] == "a" * 40
    model = Path(told[-1]["model"]["path"])
    assert model.is_relative_to(cache)
    assert f"--model-path={model}" in launcher.workers(0)[0]["argv"]
    assert "Fetching some/model: 3 files" in launcher.log
    # A router that follows knows from its start what the first one was told.
    os.kill(router["pid"], signal.SIGKILL)
    until(lambda: len(launcher.notes("router")) == 2, "another router")
    flags = launcher.notes("router")[1]["flags"]
    assert (flags["model-path"], flags["revision"]) == (str(model), "a" * 40)
    hub.close()


def test_a_local_folders_revision_is_what_the_user_says(start: Start) -> None:
    assert "revision" not in start().ready().router()["flags"]
    assert start("--revision", "mine").ready().router()["flags"]["revision"] == "mine"


@pytest.fixture
def slow_hub(tmp_path: Path) -> Iterator[tuple[StandInHub, tuple[str, ...]]]:
    """A hub that does not answer, and the flags of a model on it."""
    hub = StandInHub()
    hold = threading.Event()
    hub.repositories["some/model"] = Repository({"config.json": b"{}"}, hold=hold)
    yield hub, ("--model-id", "some/model", "--huggingface-hub-cache", str(tmp_path / "cache"))
    hold.set()
    hub.close()


SlowHub = tuple[StandInHub, tuple[str, ...]]


def test_a_stop_while_fetching_ends_with_status_0(start: Start, slow_hub: SlowHub) -> None:
    hub, flags = slow_hub
    launcher = start(*flags, HF_ENDPOINT=hub.url)
    until(lambda: hub.requests and launcher.notes("router"), "the first request")
    assert launcher.stop() == 0
    assert launcher.leaves_nothing()


def test_http_is_open_while_the_model_is_fetched(start: Start, slow_hub: SlowHub) -> None:
    hub, flags = slow_hub
    launcher = start(*flags, HF_ENDPOINT=hub.url, FAKE_REMINDER_SECONDS="0.5")
    until(lambda: hub.requests, "the first request")
    port = int(launcher.router()["flags"]["port"])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b" 503 " in client.recv(100)
    until(lambda: re.search(r"Not ready after \d+ s: the hub is asked for the model", launcher.log), "the reminder")
    assert launcher.workers(0) == []


def test_a_model_that_cannot_be_fetched_ends_the_router_too(start: Start) -> None:
    hub = StandInHub()
    launcher = start("--model-id", "no/model", HF_ENDPOINT=hub.url)
    assert launcher.ended() == 1
    assert launcher.errors[-1].startswith('Error: DownloadError("there is no model no/model on the hub')
    assert launcher.leaves_nothing()
    hub.close()


def test_a_library_that_panics_while_the_model_is_fetched_is_not_waited_for(start: Start) -> None:
    launcher = start("--model-id", "some/model", FAKE_FETCH="it fell over")
    assert launcher.ended() == 1
    assert launcher.errors[-1].endswith("PanicError: it fell over")
    assert launcher.leaves_nothing()


def test_a_router_that_dies_while_the_model_is_fetched_is_not_waited_for(start: Start, slow_hub: SlowHub) -> None:
    hub, flags = slow_hub
    launcher = start(*flags, HF_ENDPOINT=hub.url, FAKE_ROUTER="die-at-start")
    assert launcher.ended() == 1
    assert launcher.errors == ['Error: WebserverFailed("the router ended: exit status 9: the router has a headache")']


def test_clients_wait_while_a_router_is_replaced(start: Start) -> None:
    launcher = start().ready()
    router = launcher.router()
    os.kill(router["pid"], signal.SIGKILL)
    for _ in range(20):  # a refused connection would raise
        with socket.create_connection(("127.0.0.1", int(router["flags"]["port"])), timeout=PATIENCE) as client:
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.0 ")
