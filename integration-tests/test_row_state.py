"""Models whose sequences hold no pages: what is known of a sequence lies in its row, fixed in size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import httpx
import pytest
import streams
from conftest import Launch, Server, free_port

# Prompts of several chunks, more of them at once than there are rows.
LIMITS = ("--dtype", "float32", "--max-total-tokens", "256", "--max-input-tokens", "200")
CHUNKED = (*LIMITS, "--max-batch-prefill-tokens", "32", "--max-batch-size", "6")
NEW_TOKENS = 40
REQUESTS = streams.mixed_requests(12, new_tokens=NEW_TOKENS)
GREEDY = [request for request in REQUESTS if "seed" not in request[1]]


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def server(folder: Path, launch_module: Launch) -> Server:
    return launch_module(folder, *CHUNKED)


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[list[int]]:
    return [streams.read(server.url, inputs, **parameters).ids for inputs, parameters in REQUESTS]


def test_a_crowd_agrees_with_transformers_and_with_itself(
    server: Server, folder: Path, undisturbed: list[list[int]]
) -> None:
    assert streams.crowd_ids(server.url, REQUESTS) == undisturbed
    reference = checkpoints.Reference(folder)
    for (inputs, parameters), ids in zip(REQUESTS, undisturbed, strict=True):
        if "seed" not in parameters:
            assert ids == reference.greedy(checkpoints.tokenizer().encode(inputs), NEW_TOKENS)[0]


@pytest.mark.parametrize("folder", ["mamba2"], indirect=True)
def test_a_killed_worker_costs_no_token(server: Server, undisturbed: list[list[int]]) -> None:
    crowd = streams.Crowd(server.url, REQUESTS)
    crowd.wait_started()
    workers = server.kill_worker()
    transcripts = crowd.transcripts()
    assert [t.error for t in transcripts] == [None] * len(REQUESTS)
    assert [t.ids for t in transcripts] == undisturbed
    server.wait_replaced(workers)


def test_each_of_several_choices_computes_its_prompt(server: Server) -> None:
    inputs, sampled = REQUESTS[1][0], {"do_sample": True, "max_new_tokens": 12}
    details: dict[str, Any] = server.generate(inputs, best_of=2, details=True, **sampled)["details"]
    sequences = [details, *details["best_of_sequences"]]
    found = {sequence["seed"]: [token["id"] for token in sequence["tokens"]] for sequence in sequences}
    assert len(found) == 2
    for each, ids in found.items():
        assert streams.read(server.url, inputs, **sampled | {"seed": each}).ids == ids


def test_no_page_is_counted(server: Server, undisturbed: list[list[int]]) -> None:
    assert undisturbed
    assert server.metric("millrace_prompt_tokens_cached_total") == 0
    for gauge in ("used", "cached", "free"):
        assert server.metric(f"millrace_kv_pages_{gauge}") == 0
    assert httpx.get(f"{server.url}/info", timeout=10).json()["max_total_tokens"] == 256


@pytest.mark.parametrize("folder", ["mamba2"], indirect=True)
def test_more_rows_than_memory_are_not_used(folder: Path, launch: Launch, undisturbed: list[list[int]]) -> None:
    """Room for two sequences: the others wait."""
    row_bytes = 2 * 4 * (3 * (128 + 2 * 2 * 16) + 8 * 16 * 16)
    server = launch(folder, *CHUNKED, "--kv-cache-memory", str(2 * row_bytes + 1))
    assert streams.crowd_ids(server.url, REQUESTS) == undisturbed
    assert "rows 2, longest sequence 256" in server.output()  # written by now: the log comes behind what it tells of


def test_several_shards_are_refused_at_the_start(checkpoint: Callable[..., Path]) -> None:
    launcher = str(Path(sys.executable).parent / "millrace-launcher")
    command = [launcher, "--model-id", str(checkpoint("mamba")), "--num-shard", "2", "--port", str(free_port())]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    assert "recurrent layers are not split over shards: --num-shard is 2, set it to 1" in ended.stdout + ended.stderr
