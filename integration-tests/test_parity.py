"""Every architecture against transformers, on one shard or on two: ids equal, logprobs within 1e-3."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkpoints
import pytest
from conftest import Launch, Server

TOLERANCE = 1e-3
NEW_TOKENS = 24
# Prompt lengths in tokens: around a page (16), around the windows (20, 24), over several chunks of 32.
LENGTHS = (1, 15, 16, 17, 33, 70)
# The other number of each is shown without a server: worker/tests/models/test_parity.py and test_ranks.py.
PLACES = [
    *(("llama", 1), ("llama", 2), ("mistral", 2), ("qwen2", 1), ("qwen3", 2)),
    *(("gemma2", 1), ("gpt2", 2), ("gpt_neox", 1), ("falcon", 2)),
]


def prompt_of(length: int) -> tuple[str, list[int]]:
    """A text whose tokens, `<s>` included, number exactly `length`, and their ids."""
    tokenizer = checkpoints.tokenizer()
    text = Path(__file__).read_text(encoding="utf-8")
    ids = tokenizer.encode(text, add_special_tokens=False)
    start = 7 * length
    while True:
        candidate = str(tokenizer.decode(ids[start : start + max(length - 1, 1)]))
        again = tokenizer.encode(candidate)
        if len(again) == max(length, 2):
            return candidate, again
        start += 1


def check(server: Server, reference: checkpoints.Reference, length: int) -> None:
    text, ids = prompt_of(length)
    answer = server.generate(text, max_new_tokens=NEW_TOKENS, decoder_input_details=True)
    details = answer["details"]
    expected_ids, expected_logprobs = reference.greedy(ids, NEW_TOKENS)
    assert [token["id"] for token in details["tokens"]] == expected_ids
    assert [token["logprob"] for token in details["tokens"]] == pytest.approx(expected_logprobs, abs=TOLERANCE)
    assert [token["id"] for token in details["prefill"]] == ids
    assert details["prefill"][0]["logprob"] is None
    prompt_logprobs = [token["logprob"] for token in details["prefill"][1:]]
    assert prompt_logprobs == pytest.approx(reference.prompt_logprobs(ids), abs=TOLERANCE)


@pytest.mark.parametrize(("architecture", "shards"), PLACES)
def test_agrees_with_transformers(
    architecture: str, shards: int, checkpoint: Callable[..., Path], launch: Launch
) -> None:
    folder = checkpoint(architecture)
    server = launch(
        folder,
        *("--num-shard", str(shards), "--dtype", "float32", "--enable-prefill-logprobs"),
        *("--max-batch-prefill-tokens", "32", "--max-total-tokens", "256", "--max-input-tokens", "200"),
    )
    reference = checkpoints.Reference(folder)
    with ThreadPoolExecutor(16) as pool:
        # Others come and go meanwhile, sampled and of other lengths.
        noise = [
            pool.submit(server.generate, prompt_of(n)[0], max_new_tokens=n, do_sample=True, seed=n)
            for n in (3, 9, 18, 40)
        ]
        checks = [pool.submit(check, server, reference, length) for length in LENGTHS]
        for future in (*checks, *noise):
            future.result()
