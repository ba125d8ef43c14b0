"""The process as the launcher and the router see it: sockets, signals, standard input, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from millrace_worker.proto import worker_pb2, worker_pb2_grpc

from worker.tests.ports import LOCALHOST, free_port

from .conftest import POSITIONS, VOCAB, Reference
from .plans import PlanBook, read_u32

SECONDS = 300.0  # generous: how long a start takes on a busy machine is not what is tested
PREPARE = worker_pb2.PrepareRequest(max_rows=4, max_step_tokens=64, max_pool_tokens=640)


class Worker:
    """One rank in a process of its own, its output in a file."""

    program = ("-m", "millrace_worker")

    def __init__(self, folder: Path, model: Path, environment: dict[str, str] | None = None, *extra: str) -> None:
        ranked = environment or {}
        self.rank = ranked.get("RANK", "0")
        self.socket = folder / f"w-{self.rank}"
        self.log = folder / f"log-{self.rank}"
        self.errors = folder / f"errors-{self.rank}"
        plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOG_LEVEL")}
        arguments = ["--model-path", str(model), "--uds-path", str(folder / "w"), "--dtype", "float32", *extra]
        with self.log.open("wb") as log, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=errors,
                env=plain | {"OMP_NUM_THREADS": "1", "MILLRACE_LIFELINE": "stdin"} | ranked,
            )
        self.channel = grpc.insecure_channel(f"unix:{self.socket}", options=LOCALHOST)
        self.stub = worker_pb2_grpc.WorkerStub(self.channel)

    def describe(self) -> worker_pb2.ModelDescription:
        return self.stub.Describe(worker_pb2.DescribeRequest(), wait_for_ready=True, timeout=SECONDS)

    def exit_status(self) -> int:
        return self.process.wait(SECONDS)

    def end(self) -> None:
        self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SECONDS)
        if self.process.stdin:
            self.process.stdin.close()


class Stream:
    """A `Run` stream whose plans are sent one by one."""

    def __init__(self, worker: Worker) -> None:
        self._plans: queue.SimpleQueue[worker_pb2.StepPlan | None] = queue.SimpleQueue()
        self.call = worker.stub.Run(iter(self._plans.get, None), timeout=SECONDS)
        self.call.initial_metadata()  # comes before any plan was sent, or never

    def send(self, plan: worker_pb2.StepPlan) -> None:
        self._plans.put(plan)

    def receive(self) -> worker_pb2.StepResult:
        return next(self.call)

    def close(self) -> None:
        self._plans.put(None)


@pytest.fixture
def workers(tmp_path_factory: pytest.TempPathFactory, reference: Reference) -> Iterator[list[Worker]]:
    """Filled by the test; whatever is in it is ended."""
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.end()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short: a socket's path has little room."""
    return tmp_path_factory.mktemp("w")


def _generate(stream: Stream, book: PlanBook, prompt: list[int], num_tokens: int) -> list[int]:
    """Two steps in flight all the time."""
    book.admit(0, prompt)
    ids: list[int] = []
    for step in range(num_tokens + 1):
        if step < num_tokens:
            book.work(0)
            stream.send(book.plan())
        if step:
            result = stream.receive()
            assert result.step == step
            assert not result.failed
            ids += read_u32(result.token_ids)
    return ids


def test_a_worker_serves_a_stream_is_replaced_and_ends_in_order(
    workers: list[Worker], folder: Path, reference: Reference
) -> None:
    worker = Worker(folder, reference.path)
    workers.append(worker)
    described = worker.describe()
    assert described.architecture == "LlamaForCausalLM"
    assert (described.vocab_size, described.max_positions) == (VOCAB, POSITIONS)
    assert (described.dtype, described.device, described.rank, described.world_size) == ("float32", "cpu", 0, 1)
    assert described.instance == worker.describe().instance

    early = Stream(worker)
    with pytest.raises(grpc.RpcError, match="Prepare must be answered"):
        early.receive()
    prepared = worker.stub.Prepare(PREPARE, timeout=SECONDS)
    assert prepared.num_pages * described.page_size == 640
    health_stub = health_pb2_grpc.HealthStub(worker.channel)
    health = health_stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)  # pyright: ignore[reportAttributeAccessIssue]
    assert health.status == health_pb2.HealthCheckResponse.SERVING

    prompt = [5, 4, 3, 2]
    expected = reference.greedy(prompt, 10)
    first = Stream(worker)
    assert _generate(first, PlanBook(described.page_size, prepared.num_pages), prompt, 10) == expected

    # A second router takes over: the first stream ends, the rows are empty, the pool is as before.
    assert worker.stub.Prepare(PREPARE, timeout=SECONDS) == prepared
    with pytest.raises(grpc.RpcError):
        first.receive()
    second = Stream(worker)
    assert _generate(second, PlanBook(described.page_size, prepared.num_pages), prompt, 10) == expected
    third = Stream(worker)
    with pytest.raises(grpc.RpcError):
        second.receive()
    assert _generate(third, PlanBook(described.page_size, prepared.num_pages), prompt, 3) == expected[:3]

    worker.process.send_signal(signal.SIGTERM)
    assert worker.exit_status() == 0
    assert not worker.socket.exists()
    records = [json.loads(line) for line in worker.log.read_text().splitlines()]
    assert {"listening", "imported", "model loaded", "memory budget"} <= {record["message"] for record in records}
    assert worker.errors.read_text() == ""


def test_the_end_of_standard_input_ends_the_worker(workers: list[Worker], folder: Path, reference: Reference) -> None:
    """Even while it loads: the launcher that held the pipe is gone."""
    worker = Worker(folder, reference.path)
    workers.append(worker)
    assert worker.process.stdin
    worker.process.stdin.close()
    assert worker.exit_status() == 1
    assert "launcher is gone" in worker.errors.read_text()


def test_a_launcher_killed_with_all_its_pipes_leaves_no_orphan(folder: Path, reference: Reference) -> None:
    """Nobody reads what the worker says at its end, as when the launcher was killed."""
    ours, theirs = os.pipe()
    errors_ours, errors_theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "millrace_worker", "--model-path", str(reference.path), "--uds-path", str(folder / "w")],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=errors_theirs,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MILLRACE_LIFELINE": "stdin"},
    )
    try:
        os.close(theirs)
        os.close(errors_theirs)
        with grpc.insecure_channel(f"unix:{folder / 'w-0'}", options=LOCALHOST) as channel:
            grpc.channel_ready_future(channel).result(SECONDS)
        os.close(ours)
        os.close(errors_ours)
        assert process.stdin
        process.stdin.close()
        assert process.wait(SECONDS) == 1
        assert not (folder / "w-0").exists()
    finally:
        process.kill()


def test_what_cannot_be_loaded_is_said_in_one_line(workers: list[Worker], folder: Path, reference: Reference) -> None:
    broken = folder / "broken"
    broken.mkdir()
    config = json.loads((reference.path / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["NobodysModel"]}))
    (broken / "model.safetensors").symlink_to(reference.path / "model.safetensors")
    worker = Worker(folder, broken)
    workers.append(worker)
    assert worker.exit_status() == 1
    lines = worker.errors.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"Error: cannot load {broken}")
    assert "NobodysModel" in lines[0]


def test_a_stale_socket_is_replaced_and_a_living_one_respected(
    workers: list[Worker], folder: Path, reference: Reference
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(folder / "w-0"))
    first = Worker(folder, reference.path)
    workers.append(first)
    first.describe()
    (folder / "second").mkdir()
    second = Worker(folder, reference.path)  # the same socket
    workers.append(second)
    assert second.exit_status() == 1
    assert "another worker listens" in second.errors.read_text()
    assert first.describe().rank == 0


def test_a_stopped_process_has_no_pulse_and_a_running_one_tells_its_stacks(
    workers: list[Worker], folder: Path, reference: Reference
) -> None:
    worker = Worker(folder, reference.path, {"MILLRACE_GENERATION": "7"})
    workers.append(worker)
    beat = worker.stub.Beat(worker_pb2.BeatRequest(), wait_for_ready=True, timeout=SECONDS)
    assert (beat.generation, beat.total) == (7, 3)
    assert beat.bytes_read <= beat.bytes_to_read
    assert (beat.done, beat.stage != "") <= (3, True)
    worker.describe()
    beat = worker.stub.Beat(worker_pb2.BeatRequest(), timeout=SECONDS)
    assert (beat.progress, beat.is_computing, beat.stage, beat.done) == (0, False, "", 3)
    worker.stub.Prepare(PREPARE, timeout=SECONDS)
    stream, book = Stream(worker), PlanBook(worker.describe().page_size, 40)
    assert _generate(stream, book, [1, 2, 3], 5) == reference.greedy([1, 2, 3], 5)
    assert worker.stub.Beat(worker_pb2.BeatRequest(), timeout=SECONDS).progress == 5
    worker.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + SECONDS
    while "in compute" not in (stacks := worker.errors.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "stream.py" in stacks
    worker.process.send_signal(signal.SIGSTOP)
    status = Path(f"/proc/{worker.process.pid}/status")
    while "T (stopped)" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(grpc.RpcError, match="Deadline Exceeded"):
        worker.stub.Beat(worker_pb2.BeatRequest(), timeout=0.5)
    worker.process.send_signal(signal.SIGCONT)
    assert worker.stub.Beat(worker_pb2.BeatRequest(), timeout=SECONDS).progress == 5
    stream.close()


def _two_ranks(workers: list[Worker], folder: Path, reference: Reference) -> tuple[Worker, Worker]:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pair = [Worker(folder, reference.path, shared | {"RANK": str(rank)}) for rank in (0, 1)]
    workers.extend(pair)
    return pair[0], pair[1]


class WorkerOnTwoNodes(Worker):
    """As if the first half of this machine's cores were one NUMA node and the second another."""

    program = (
        "-c",
        "import os; from millrace_worker import __main__, placement; cores = sorted(os.sched_getaffinity(0)); "
        "half = len(cores) // 2; nodes = {0: frozenset(cores[:half]), 1: frozenset(cores[half:])}; "
        "placement.read_nodes = lambda _: nodes; __main__.main()",
    )


def _affinities(pid: int) -> dict[int, set[int]]:
    """The cores of each thread of a process, without those that end meanwhile."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            found[int(task.name)] = os.sched_getaffinity(int(task.name))
    return found


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_all_threads_of_a_rank_keep_to_its_node(workers: list[Worker], folder: Path, reference: Reference) -> None:
    """Also those that were there when the place was taken, and the one that computes, which comes later."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [WorkerOnTwoNodes(folder, reference.path, shared | {"RANK": str(rank)}) for rank in (0, 1)]
    workers.extend(ranks)
    for rank in ranks:
        rank.describe()
    for call in [rank.stub.Prepare.future(PREPARE, timeout=SECONDS) for rank in ranks]:
        call.result()
    cores = sorted(os.sched_getaffinity(0))
    halves = cores[: len(cores) // 2], cores[len(cores) // 2 :]
    for rank, half in zip(ranks, halves, strict=True):
        found = _affinities(rank.process.pid)
        assert len(found) > 2
        assert [task for task, mask in found.items() if mask != set(half)] == []
        (told,) = (line for line in rank.log.read_text().splitlines() if '"computing on CPUs"' in line)
        assert json.loads(told)["nodes"] == rank.rank


def test_two_ranks_agree_and_the_death_of_one_ends_the_other(
    workers: list[Worker], folder: Path, reference: Reference
) -> None:
    ranks = _two_ranks(workers, folder, reference)
    page_size = ranks[0].describe().page_size
    assert ranks[1].describe().rank == 1
    request = worker_pb2.PrepareRequest(max_rows=4, max_step_tokens=64, max_pool_tokens=640, prompt_logprobs=True)
    pending = [rank.stub.Prepare.future(request, timeout=SECONDS) for rank in ranks]
    num_pages = min(call.result().num_pages for call in pending)
    streams = [Stream(rank) for rank in ranks]
    book = PlanBook(page_size, num_pages)
    prompt, ids = [5, 4, 3, 2], []
    book.admit(0, prompt, prompt_logprobs=True)
    for _ in range(6):
        book.work(0)
        plan = book.plan()
        for stream in streams:
            stream.send(plan)
        leading, following = (stream.receive() for stream in streams)
        assert not leading.failed
        assert following.step == leading.step == plan.step
        assert following.token_ids == b""
        ids += read_u32(leading.token_ids)
    assert ids == reference.greedy(prompt, 6)

    ranks[1].process.kill()
    book.work(0)
    streams[0].send(book.plan())
    assert ranks[0].exit_status() == 1
    assert "cannot go on" in ranks[0].errors.read_text()
