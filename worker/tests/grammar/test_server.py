"""Grammars through the process as the router sees it: two steps in flight all the time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
from millrace_worker.grammar import FULL_LEXER_BYTES, Vocabulary, host_bytes
from millrace_worker.proto import worker_pb2

from worker.tests.engine.plans import PlanBook, read_u32
from worker.tests.engine.test_server import SECONDS, Stream, Worker

from .conftest import DEMO
from .noisy import END, sampling, seeded
from .test_generation import OBJECT, text

PREPARE = worker_pb2.PrepareRequest(max_rows=4, max_step_tokens=256, max_pool_tokens=4096, grammars=True)
PROMPT = [0, *range(200, 220)]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    started = Worker(tmp_path_factory.mktemp("w"), DEMO)
    yield started
    started.end()


def _stream(worker: Worker, requests: Sequence[tuple[worker_pb2.Sampling, Sequence[int]]]) -> list[list[int]]:
    """The ids of each request, of which some are known already, up to its end or its failure."""
    page_size = worker.describe().page_size  # which waits until it listens
    prepared = worker.stub.Prepare(PREPARE, timeout=SECONDS)
    book, stream = PlanBook(page_size, prepared.num_pages), Stream(worker)
    ids = [list(known) for _, known in requests]
    running = set(range(len(requests)))
    for row, (asked, known) in enumerate(requests):
        book.admit(row, [*PROMPT, *known], num_prompt_tokens=len(PROMPT), sampling=asked)
    in_flight: list[list[int]] = []
    while running or in_flight:
        if running:
            rows = sorted(running)
            for row in rows:
                book.work(row)
            stream.send(book.plan())
            in_flight.append(rows)
        if len(in_flight) == 2 or not running:
            result, rows = stream.receive(), in_flight.pop(0)
            failed = {failure.sequence - 100 for failure in result.failed}
            for row, token in zip(rows, read_u32(result.token_ids), strict=True):
                if row in running and row not in failed:
                    ids[row].append(token)
            running -= failed | {row for row in running if ids[row][-1:] == [END] or len(ids[row]) >= 300}
    stream.close()
    return ids


def test_a_worker_says_that_it_can(worker: Worker) -> None:
    described = worker.describe()
    assert "grammar" in described.capabilities
    assert "grammar" not in described.missing


def test_two_steps_in_flight_and_a_stream_that_is_replaced(worker: Worker, vocabulary: Vocabulary) -> None:
    alone = [_stream(worker, [(each, [])])[0] for each in (sampling(OBJECT), seeded(OBJECT), sampling(ends=[]))]
    for ids in alone[:2]:
        assert ids[-1] == END
        assert set(json.loads(text(vocabulary, ids))) == {"name", "sizes"}
    together = [(sampling(OBJECT), []), (seeded(OBJECT), []), (sampling(ends=[]), []), (sampling("start: nosuch"), [])]
    assert _stream(worker, together) == [*alone, []]
    # The router comes back after a fault: a new stream, the tokens so far, other rows.
    resumed = [(seeded(OBJECT), alone[1][:7]), (sampling(OBJECT), alone[0][:11])]
    assert _stream(worker, resumed) == [alone[1], alone[0]]
    # What grammars may take is part of the budget, and told.
    budgets = [json.loads(line) for line in worker.log.read_text().splitlines() if "memory budget" in line]
    expected = (host_bytes(PREPARE.max_rows) / 2**20, FULL_LEXER_BYTES / 2**20)
    told = [(budget["host_grammars_mib"], budget["host_grammar_most_mib"]) for budget in budgets]
    assert told == [expected]
    assert budgets[0]["workspaces_mib"] > expected[0]
