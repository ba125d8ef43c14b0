"""What the length of a sequence changes: pages that a window has left, and positions beyond the original context."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import checkpoints
import httpx
import torch
from conftest import Launch, Server
from test_parity import prompt_of

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 40,
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.3, 2.0, 3.0, 4.5, 6.0, 7.0, 8.0],
}


# transformers keeps the frequencies of the last call in the model: two at once would mix theirs.
ONE_AT_A_TIME = Lock()


def check(server: Server, reference: checkpoints.Reference, length: int, new_tokens: int) -> int:
    """Answers how many tokens there were in all."""
    text, ids = prompt_of(length)
    with ONE_AT_A_TIME:
        expected, _ = reference.greedy(ids, new_tokens)
    details: dict[str, Any] = server.generate(text, max_new_tokens=new_tokens, details=True)["details"]
    assert [token["id"] for token in details["tokens"]] == expected
    return len(ids) + len(expected)


def test_a_sequence_with_a_window_grows_far_beyond_the_pool(tmp_path: Path, launch: Launch) -> None:
    folder = checkpoints.make(tmp_path / "model", "mistral")
    server = launch(
        folder, *("--dtype", "float32", "--max-batch-total-tokens", "64", "--max-batch-prefill-tokens", "16")
    )
    reference = checkpoints.Reference(folder)
    with ThreadPoolExecutor(4) as pool:
        lengths = pool.map(lambda length: check(server, reference, length, 120), (70, 33, 5, 100))
        assert max(lengths) > 2 * 64, "nothing outgrew the pool"


def test_a_sequence_that_crosses_the_switch_goes_on_as_transformers_does(tmp_path: Path, launch: Launch) -> None:
    folder = checkpoints.make(tmp_path / "model", "llama", rope_parameters=LONGROPE)
    server = launch(folder, *("--dtype", "float32", "--max-batch-prefill-tokens", "16", "--max-total-tokens", "256"))
    reference = checkpoints.Reference(folder)
    with ThreadPoolExecutor(8) as pool:
        crossing = [pool.submit(check, server, reference, length, 24) for length in (20, 30, 33, 39, 40, 41, 70)]
        for future in crossing:
            future.result()
    assert server.metric("millrace_position_switches_total") > 0


def test_flags_stretch_positions_as_the_configuration_would(tmp_path: Path, launch: Launch) -> None:
    """Four times the original context: `/info` says so, and what lies beyond it is what transformers computes."""
    kind, original, factor = "dynamic", 40, 4.0
    folder = checkpoints.make(tmp_path / "model", "llama", max_position_embeddings=original)
    server = launch(folder, "--dtype", "float32", "--rope-scaling", kind, "--rope-factor", str(factor))
    info = httpx.get(f"{server.url}/info", timeout=10).json()
    assert info["max_total_tokens"] == original * factor
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["rope_parameters"] = {"rope_type": kind, "rope_theta": 10000.0, "factor": factor}
    path.write_text(json.dumps(config), encoding="utf-8")
    for length in (20, 30, 70, 130):
        text, ids = prompt_of(length)
        # A model of its own for each: transformers keeps the frequencies of the longest sequence that it has seen.
        expected = token_by_token(checkpoints.Reference(folder).model, ids, 24)
        details: dict[str, Any] = server.generate(text, max_new_tokens=24, details=True)["details"]
        assert [token["id"] for token in details["tokens"]] == expected


@torch.no_grad()
def token_by_token(model: Any, prompt: list[int], steps: int) -> list[int]:
    """Greedy, from a cache: dynamic frequencies are those of the sequence that ends with a token."""
    cache, logits, found = None, torch.empty(0), list[int]()
    for token in prompt:
        output = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits
    while len(found) < steps and checkpoints.SIZES["eos_token_id"] not in found:
        found.append(int(logits[0, -1].argmax()))
        logits = model(torch.tensor([found[-1:]]), past_key_values=cache, use_cache=True).logits
    return found
