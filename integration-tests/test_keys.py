"""The file of API keys through the launcher: whose key opens what, what is changed while serving, what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Launch, Server, starting

LIMITS = ("--dtype", "float32", "--max-total-tokens", "2048", "--max-input-tokens", "300")
SEARCH, BATCH, NEWCOMER = "sk-search-0123456789", "sk-batch-01234567890", "sk-newcomer-01234567"
SECONDS = 60.0


def tenant(name: str, key: str, *more: str) -> str:
    return "\n".join(["[[tenant]]", f'name = "{name}"', f'key = "{key}"', *more, ""])


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(tenant("search", SEARCH) + tenant("batch", BATCH, "max_concurrent_requests = 1"))
    file.chmod(0o600)
    return file


def rewrite(keys: Path, text: str) -> None:
    """In one moment: the server never sees a part of it."""
    beside = keys.with_suffix(".new")
    beside.write_text(text)
    beside.chmod(0o600)
    beside.rename(keys)


def ask(server: Server, key: str | None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"inputs": "the quick", "parameters": {"max_new_tokens": 2}}
    return httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=SECONDS)


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def events(answer: httpx.Response) -> Iterator[str]:
    return (line for line in answer.iter_lines() if line.startswith("data:"))


def test_keys_open_limit_and_change_while_serving(checkpoint: Callable[..., Path], launch: Launch, keys: Path) -> None:
    server = launch(checkpoint(), *LIMITS, "--api-key-file", str(keys))
    assert [ask(server, key).status_code for key in (SEARCH, BATCH)] == [200, 200]
    for wrong in (None, NEWCOMER, SEARCH[:-1], SEARCH.upper()):
        assert ask(server, wrong).status_code == 401, wrong
    assert server.health() == 200, "nobody needs a key to ask for it"

    body = {"inputs": "on and on", "parameters": {"max_new_tokens": 1500}}
    request = {"json": body, "headers": {"authorization": f"Bearer {BATCH}"}, "timeout": SECONDS}
    with httpx.stream("POST", f"{server.url}/generate_stream", **request) as answer:
        stream = events(answer)
        first = next(stream)
        refused = ask(server, BATCH)
        assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert "max_concurrent_requests" in refused.json()["error"]
        assert ask(server, SEARCH).status_code == 200, "one tenant's limit is no other's"

        rewrite(keys, tenant("search", SEARCH) + tenant("newcomer", NEWCOMER))
        until(lambda: ask(server, NEWCOMER).status_code == 200, "a key that was added")
        assert ask(server, BATCH).status_code == 401, "a key that was removed"
        rest = list(stream)
    assert len([first, *rest]) == 1500, "who is inside goes on"
    assert '"error"' not in rest[-1]

    rewrite(keys, tenant("batch", BATCH, "wieght = 2"))
    until(lambda: "the API keys stay as they were" in server.output(), "a complaint")
    complaint = next(line for line in server.output().splitlines() if "stay as they were" in line)
    assert f"{keys}, line 4: " in complaint
    assert "wieght" in complaint
    assert [ask(server, key).status_code for key in (SEARCH, NEWCOMER, BATCH)] == [200, 200, 401]
    assert not any(key in server.output() for key in (SEARCH, BATCH, NEWCOMER))
    assert server.metric('millrace_tenant_requests_total{tenant="search"}') > 0


def test_a_file_with_a_mistake_is_no_start(checkpoint: Callable[..., Path], keys: Path, tmp_path: Path) -> None:
    keys.write_text(keys.read_text() + "weight = 0\n")
    with starting(checkpoint(), tmp_path / "log", *LIMITS, "--api-key-file", str(keys)) as server:
        assert server.process.wait(SECONDS) == 1
    last = server.output().splitlines()[-1]
    assert last.startswith('Error: WebserverFailed("the router ended')
    assert f"{keys}, line 8: `weight` must be a whole number from 1 to 1000" in last
    assert BATCH not in server.output()
