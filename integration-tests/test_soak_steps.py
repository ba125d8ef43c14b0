"""A step that takes long because there is much to compute is no hang: health stays true all the while.

`make soak` makes the step last more than 30 s; the form that runs with every test is some times as long as the lowered
bound. A bound that did not grow with what steps were seen to cost would call it a hang.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import checkpoints
import httpx
import pytest
from conftest import Launch, Server

LONG = bool(os.environ.get("MILLRACE_SOAK"))
LAYERS, TOKENS = (32, 8000) if LONG else (4, 3000)
WIDE = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 2048}
FLAGS = (
    "--dtype",
    "float32",
    "--max-batch-prefill-tokens",
    "8192",
    "--max-total-tokens",
    "8192",
    "--max-batch-size",
    "4",
)
ROUTES = ("/health", "/livez", "/readyz")


class Prober(threading.Thread):
    """Asks for health until told to end; keeps what was not 200, and how long answers took."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server, self._over = server, threading.Event()
        self.bad: list[str] = []
        self.seconds: list[float] = []

    def run(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._over.wait(0.02):
                for route in ROUTES:
                    began = time.monotonic()
                    answer = client.get(f"{self._server.url}{route}")
                    self.seconds.append(time.monotonic() - began)
                    if answer.status_code != 200:
                        self.bad.append(f"{route}: {answer.status_code} {answer.text}")

    def end(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.parametrize("is_first", [False, True])
def test_a_long_step_is_no_hang(tmp_path: Path, launch: Launch, is_first: bool) -> None:
    over = WIDE | {"num_hidden_layers": LAYERS, "max_position_embeddings": 8192}
    model = checkpoints.make(tmp_path / "wide", "llama", **over)
    server = launch(model, *FLAGS, "--hung-step-seconds", "1")
    if not is_first:
        # What steps cost is learned: one token at a time, and a prompt of some. Otherwise the trial has told.
        server.generate("word " * 100, max_new_tokens=10)
    [worker] = server.children("millrace_worker")
    prober = Prober(server)
    prober.start()
    began = time.monotonic()
    server.generate("word" * TOKENS, max_new_tokens=1, truncate=TOKENS)
    took = time.monotonic() - began
    prober.end()
    slowest = max(prober.seconds)
    print(f"a step of {took:.1f} s; {len(prober.seconds)} probes meanwhile, the slowest {slowest * 1000:.0f} ms")
    assert prober.bad == []
    assert len(prober.seconds) > len(ROUTES)
    assert server.children("millrace_worker") == [worker]
    assert not LONG or took > 30
