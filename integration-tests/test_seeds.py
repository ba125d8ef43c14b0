"""Seeds reproduce on a real vocabulary: thousands of tokens, alone, in a crowd, across the death of a worker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import streams
from conftest import Launch, Server

PROMPTS = ("def parse(", "import ", "class Node:", "# Read the file", "for key in ", "try:", "return ", "with open(")
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (f"{prompt} {index}", {"max_new_tokens": 200, "do_sample": True, "temperature": 1.0, "seed": 7000 + index})
    for index, prompt in enumerate(PROMPTS * 2)
]


# On CPUs a row's logits have the same bits in any company, in either dtype; on GPUs only float32 is near enough. (The
# other tests of crowds and killed workers are in float32.)
DTYPE = "float32" if Path("/proc/driver/nvidia/gpus").exists() else "bfloat16"


@pytest.fixture(scope="module")
def server(launch_module: Launch) -> Server:
    return launch_module("demo", "--dtype", DTYPE)


@pytest.fixture(scope="module")
def alone(server: Server) -> list[list[int]]:
    return [streams.read(server.url, inputs, **parameters).ids for inputs, parameters in REQUESTS]


def test_in_a_crowd(server: Server, alone: list[list[int]]) -> None:
    assert sum(map(len, alone)) > 1500
    assert streams.crowd_ids(server.url, REQUESTS) == alone


def test_across_the_death_of_a_worker(server: Server, alone: list[list[int]]) -> None:
    crowd = streams.Crowd(server.url, REQUESTS)
    crowd.wait_started()
    workers = server.kill_worker()
    transcripts = crowd.transcripts()
    assert [t.error for t in transcripts] == [None] * len(REQUESTS)
    assert [t.ids for t in transcripts] == alone
    server.wait_replaced(workers)


def test_across_the_death_of_a_worker_of_two_threads(launch: Launch) -> None:
    """Greedy and seeded. The other tests' workers compute in one thread."""
    server = launch("demo", "--dtype", DTYPE, OMP_NUM_THREADS="2")
    requests = streams.mixed_requests(8, new_tokens=150)
    undisturbed = streams.crowd_ids(server.url, requests)
    [worker] = server.children("millrace_worker")
    assert b"OMP_NUM_THREADS=2" in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    if DTYPE == "bfloat16":
        assert re.search(r"model loaded.* linear=\"?native", server.output())
    crowd = streams.Crowd(server.url, requests)
    crowd.wait_started()
    workers = server.kill_worker()
    transcripts = crowd.transcripts()
    assert [t.error for t in transcripts] == [None] * len(requests)
    assert [t.ids for t in transcripts] == undisturbed
    server.wait_replaced(workers)
