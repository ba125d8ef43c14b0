"""The Transformers backend through the real launcher: the ids of the native path, faults and preemption for free."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import httpx
import pytest
import streams
from conftest import Launch, Server

HOSTED = ("--model-impl", "transformers")
LIMITS = ("--dtype", "float32", "--max-total-tokens", "512", "--max-input-tokens", "300")
REQUESTS = streams.mixed_requests(8, new_tokens=60)
HELD = {"type": "regex", "value": "[0-9]{3}-[a-c]{2}"}
FEW_PAGES = ("--max-batch-total-tokens", "544", "--max-batch-prefill-tokens", "128")


@pytest.fixture(scope="module")
def hosted(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(checkpoint(), *LIMITS, *HOSTED)


@pytest.fixture(scope="module")
def native(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(checkpoint(), *LIMITS, "--model-impl", "native")


@pytest.fixture(scope="module")
def native_ids(native: Server) -> list[list[int]]:
    return streams.crowd_ids(native.url, REQUESTS)


def model_info(server: Server) -> dict[str, Any]:
    return httpx.get(f"{server.url}/info", timeout=10).json()["model"]


def test_the_same_ids_as_native(hosted: Server, native: Server, native_ids: list[list[int]]) -> None:
    assert [model_info(server)["implementation"] for server in (native, hosted)] == ["native", "transformers"]
    assert "prefix_caching" in model_info(hosted)["capabilities"]
    assert model_info(hosted)["missing"] == {}
    assert streams.crowd_ids(hosted.url, REQUESTS) == native_ids
    for seed in range(2):
        asked = {"max_new_tokens": 40, "do_sample": True, "seed": seed, "grammar": HELD}
        texts = [server.generate("number", **asked)["generated_text"] for server in (native, hosted)]
        assert re.fullmatch(HELD["value"], texts[0])
        assert texts[1] == texts[0]


@pytest.mark.parametrize(
    ("architecture", "implementation", "missing"),
    [
        ("gemma2", "transformers", set()),  # windows, and an attention of its own
        ("gpt2", "transformers", {"tensor_parallelism"}),
        # Falcon's attention cannot be hooked: each sequence has a cache of its own.
        ("falcon", "transformers, a cache per sequence", {"prefix_caching"}),
    ],
)
def test_every_kind_of_model_serves_many_and_keeps_seeds(
    architecture: str, implementation: str, missing: set[str], checkpoint: Callable[..., Path], launch: Launch
) -> None:
    """What each says without a server, others too, is in worker/tests/models/test_hosted.py."""
    folder = checkpoint(architecture)
    server = launch(folder, *LIMITS, *HOSTED)
    assert model_info(server)["implementation"] == implementation
    assert missing <= set(model_info(server)["missing"])
    found = streams.crowd_ids(server.url, REQUESTS)
    reference = checkpoints.Reference(folder)
    for (inputs, parameters), ids in zip(REQUESTS, found, strict=True):
        if "seed" in parameters:
            assert ids == streams.read(server.url, inputs, **parameters).ids
        else:
            assert ids == reference.greedy(checkpoints.tokenizer().encode(inputs), parameters["max_new_tokens"])[0]


def test_a_killed_worker_and_preemption_cost_nothing(
    hosted: Server, native_ids: list[list[int]], checkpoint: Callable[..., Path], launch: Launch
) -> None:
    tight = launch(checkpoint(), *LIMITS, *HOSTED, *FEW_PAGES)
    assert streams.crowd_ids(tight.url, 3 * REQUESTS) == 3 * native_ids  # too many, however slowly they come
    assert tight.metric("millrace_preemptions_total") > 0
    crowd = streams.Crowd(hosted.url, REQUESTS)
    crowd.wait_started()
    workers = hosted.kill_worker()
    transcripts = crowd.transcripts()
    assert [t.error for t in transcripts] == [None] * len(REQUESTS)
    assert [t.ids for t in transcripts] == native_ids
    hosted.wait_replaced(workers)
