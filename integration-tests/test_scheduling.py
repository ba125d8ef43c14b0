"""The schedule may never change what is generated: pool sizes, chunk sizes, caches, neighbours."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import streams
from conftest import Launch, Server

LIMITS = ("--dtype", "float32", "--max-total-tokens", "320", "--max-input-tokens", "256")
REQUESTS = streams.mixed_requests(16, new_tokens=48)


@pytest.fixture(scope="module")
def roomy(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    """Whole prompts at once, and room for all of them."""
    return launch_module(checkpoint(), *LIMITS)


@pytest.fixture(scope="module")
def reference(roomy: Server) -> list[list[int]]:
    """The ids of each request alone."""
    return [streams.read(roomy.url, inputs, **parameters).ids for inputs, parameters in REQUESTS]


def test_neighbours_and_cached_prefixes_change_nothing(roomy: Server, reference: list[list[int]]) -> None:
    assert streams.crowd_ids(roomy.url, REQUESTS) == reference
    assert roomy.metric("millrace_prompt_tokens_cached_total") > 0
    assert roomy.metric("millrace_preemptions_total") == 0


@pytest.mark.parametrize(("chunk", "pool", "caching"), [("8", "320", "true"), ("64", "448", "false")])
def test_small_pools_and_chunks_change_nothing(
    chunk: str,
    pool: str,
    caching: str,
    reference: list[list[int]],
    checkpoint: Callable[..., Path],
    launch: Launch,
) -> None:
    server = launch(
        checkpoint(),
        *LIMITS,
        *("--max-batch-prefill-tokens", chunk, "--max-batch-total-tokens", pool),
        PREFIX_CACHING=caching,
    )
    assert streams.crowd_ids(server.url, REQUESTS) == reference
    # And once more, now with whatever the prefix cache holds; too many, however slowly they come.
    assert streams.crowd_ids(server.url, 2 * REQUESTS) == 2 * reference
    assert server.metric("millrace_preemptions_total") > 0


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(
        checkpoint(),
        *("--dtype", "float32", "--max-total-tokens", "2304", "--max-input-tokens", "2200"),
        *("--max-batch-prefill-tokens", "512"),
    )


def computed(server: Server) -> float:
    return server.metric("millrace_prompt_tokens_computed_total")


LONG = " ".join(f"word{n}" for n in range(340))


def test_a_prompt_seen_before_costs_at_most_a_page(server: Server) -> None:
    inputs = "first " + LONG
    before = computed(server)
    server.generate(inputs, max_new_tokens=4)
    first = computed(server) - before
    assert first > 1900
    server.generate(inputs, max_new_tokens=4)
    assert 1 <= computed(server) - before - first <= 16


def test_two_equal_prompts_at_once_are_computed_once(server: Server) -> None:
    inputs = "second " + LONG
    before = computed(server)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: server.generate(inputs, max_new_tokens=4), range(2)))
    assert answers[0] == answers[1]
    # Four chunks of 512 tokens: the second request came while the first was being computed.
    once = computed(server) - before
    before = computed(server)
    server.generate("third " + LONG, max_new_tokens=4)
    alone = computed(server) - before
    assert abs(once - alone) <= 40  # the prompts differ by a token or two, and the second adds a page


def test_best_of_stores_the_prompt_once(server: Server) -> None:
    inputs = "fourth " + LONG
    before = computed(server)
    answer = server.generate(inputs, max_new_tokens=8, best_of=2, do_sample=True, details=True)
    cost = computed(server) - before
    assert 1900 < cost < 2300  # twice the prompt would be over 3,800
    assert len(answer["details"]["best_of_sequences"]) == 1


def test_a_seed_gives_the_same_ids_alone_and_among_neighbours(server: Server) -> None:
    sampled: dict[str, Any] = {"do_sample": True, "temperature": 1.3, "top_k": 50, "seed": 4242, "max_new_tokens": 40}
    inputs = "a seed is a promise"
    alone = streams.read(server.url, inputs, **sampled).ids
    others = streams.mixed_requests(15, new_tokens=40)
    among = streams.crowd_ids(server.url, [*others[:7], (inputs, sampled), *others[7:]])[7]
    assert among == alone
    sampled["seed"] = 4243
    assert streams.read(server.url, inputs, **sampled).ids != alone
