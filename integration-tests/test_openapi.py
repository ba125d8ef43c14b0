"""The server does what its OpenAPI document says, whatever it is sent. `make fuzz-api` asks for longer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import fuzzing
import httpx
import pytest
from conftest import Launch, Server


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(checkpoint(), "--dtype", "float32", "--max-total-tokens", "48", KSERVE="true")


def test_a_fuzzer_finds_no_undocumented_answer(server: Server, tmp_path: Path) -> None:
    ended = fuzzing.fuzz(server.url, 25, tmp_path, examples=5, phases="fuzzing")
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", ended.stdout)
    assert tested is not None
    assert int(tested.group(1)) >= 12, ended.stdout[-3000:]
    assert server.health() == 200


def test_a_timeout_that_nothing_can_meet_is_answered_as_documented(server: Server) -> None:
    document = httpx.get(f"{server.url}/api-doc/openapi.json", timeout=30).json()
    least = {"timeout": 5e-324}
    bodies = {
        "/": {"inputs": "a", "parameters": least},
        "/generate": {"inputs": "a", "parameters": least},
        "/generate_stream": {"inputs": "a", "parameters": least},
        "/vertex": {"instances": [{"inputs": "a", "parameters": least}]},
        "/invocations": {"prompt": "a", **least},
        "/v1/completions": {"prompt": "a", **least},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], **least},
    }
    for path, body in bodies.items():
        answer = httpx.post(f"{server.url}{path}", json=body, timeout=30)
        assert answer.status_code == 504, (path, answer.text)
        assert "504" in document["paths"][path]["post"]["responses"], path
