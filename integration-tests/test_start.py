"""HTTP from the first second: what is answered while the model is downloaded, and then while it is loaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from conftest import starting

from launcher.tests.fakes.stand_in_hub import Repository, StandInHub

ROUTES = ("/generate", "/generate_stream", "/v1/completions", "/v1/chat/completions", "/tokenize", "/")
SECONDS = 60.0


def standing(url: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What `/startupz` says as soon as that is `wanted`."""
    deadline = time.monotonic() + SECONDS
    while True:
        answer = httpx.get(f"{url}/startupz", timeout=10)
        if wanted(answer.json()):
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1")
            return answer.json()
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.01)


def until_listening(url: str) -> None:
    """Python needs a moment to start; from the launcher's first words on, nobody is refused."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/livez", timeout=10)
        except httpx.ConnectError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError("nobody listens")


def test_every_moment_of_a_start_has_an_answer(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    hub, hold = StandInHub(), threading.Event()
    files = {path.name: path.read_bytes() for path in checkpoint().iterdir() if path.is_file()}
    hub.repositories["some/model"] = Repository(files, hold=hold)
    flags = ("--huggingface-hub-cache", str(tmp_path / "cache"), "--dtype", "float32")
    with starting("some/model", tmp_path / "log", *flags, HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1") as server:
        until_listening(server.url)
        assert httpx.get(f"{server.url}/livez", timeout=10).status_code == 200
        said = standing(server.url, lambda said: "the hub is asked" in said["waiting_for"])
        assert said["phase"] == "starting"
        assert "progress" not in said
        for route in ROUTES:
            refused = httpx.post(f"{server.url}{route}", json={"inputs": "a"}, timeout=10)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1"), refused.text
            assert "the hub is asked" in refused.text
        hold.set()
        server.wait_healthy()
        assert server.generate("the quick", max_new_tokens=3)["generated_text"]
        assert server.metric("millrace_start_total_bytes") == 0
    hub.close()
