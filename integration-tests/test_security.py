"""An attacker's view of a running server: what listens, what is fetched, what leaks, what is logged.

docs/security.md says which class of attack each of these tests holds off.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Launch, Server

KEY = "k3y-of-the-test"
# Told in every place where a client can write something; to be found in no log.
MARKER = "zq7wmarkerx"
GENERATE, CHAT, COMPLETIONS = "/generate", "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(
        checkpoint(), "--dtype", "float32", "--max-total-tokens", "512", "--num-shard", "2", API_KEY=KEY, KSERVE="true"
    )


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


def processes(server: Server) -> list[int]:
    return [server.process.pid, *server.children("millrace_worker"), *server.children("millrace-router")]


def sockets_of(processes: list[int]) -> set[str]:
    """The inodes of their sockets."""
    found = set()
    for process in processes:
        for link in list(Path(f"/proc/{process}/fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                target = str(link.readlink())
                if target.startswith("socket:["):
                    found.add(target.removeprefix("socket:[").removesuffix("]"))
    return found


def listening_beyond_loopback(processes: list[int]) -> list[str]:
    """Addresses and ports, as /proc writes them, on which these processes take connections from other machines."""
    mine = sockets_of(processes)
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, state, inode = fields[1], fields[3], fields[9]
            is_loopback = address.startswith(("0100007F:", "0000000000000000FFFF00000100007F:", f"{'0' * 24}01000000:"))
            if inode in mine and (state == "0A" or table.startswith("udp")) and not is_loopback:
                found.append(f"{table} {address}")
    return found


def test_no_process_listens_for_other_machines_unless_it_was_told_to(server: Server) -> None:
    """This server's HTTP port is bound to 127.0.0.1 as well. What is looked for are the ports of the ranks."""
    assert len(server.children("millrace_worker")) == 2
    assert listening_beyond_loopback(processes(server)) == []
    with socket.create_server(("0.0.0.0", 0)):
        assert len(listening_beyond_loopback([os.getpid()])) == 1, "it would have been found"


def test_only_their_user_can_reach_the_workers(server: Server) -> None:
    arguments = Path(f"/proc/{server.children('millrace_worker')[0]}/cmdline").read_text().split("\0")
    prefix = next(Path(given.partition("=")[2]) for given in arguments if given.startswith("--uds-path="))
    assert stat.S_IMODE(prefix.parent.stat().st_mode) == 0o700
    assert prefix.parent.stat().st_uid == os.getuid()
    for rank in (0, 1):
        made = Path(f"{prefix}-{rank}").stat()
        assert stat.S_ISSOCK(made.st_mode)
        assert stat.S_IMODE(made.st_mode) == 0o600


def test_the_key_is_in_no_command_line_and_workers_do_not_have_it(server: Server) -> None:
    for process in processes(server):
        assert KEY not in Path(f"/proc/{process}/cmdline").read_text()
    for worker in server.children("millrace_worker"):
        assert KEY not in Path(f"/proc/{worker}/environ").read_text()


@contextmanager
def canary() -> Iterator[tuple[str, list[str]]]:
    """An address, and who has connected to it."""
    visits: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def watch() -> None:
            while True:
                try:
                    connection, visitor = listener.accept()
                except OSError:
                    return
                connection.close()
                visits.append(str(visitor))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", visits
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1} | more


def parameters(**more: Any) -> dict[str, Any]:
    return {"inputs": "a", "parameters": {"max_new_tokens": 1} | more}


def schema_of(value: Any) -> dict[str, Any]:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}})


def said(content: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": content}])


def test_nothing_that_a_client_writes_is_fetched(client: httpx.Client) -> None:
    with canary() as (url, visits):
        image, slashes = f"{url}/a.png", url.replace("://", ":\\\\")
        bodies = [
            (GENERATE, parameters() | {"inputs": f"what is this? ![]({image})"}),
            (GENERATE, parameters() | {"inputs": f"<img src='{image}'> <image>{image}</image>"}),
            (GENERATE, parameters(adapter_id=image)),
            (GENERATE, parameters(grammar={"type": "json", "value": {"$ref": f"{url}/schema.json"}})),
            (GENERATE, parameters(grammar={"type": "json_schema", "value": {"$schema": f"{url}/draft"}})),
            (COMPLETIONS, {"prompt": f"![]({image})", "max_tokens": 1}),
            (CHAT, said(f"![]({image})")),
            (CHAT, said([{"type": "text", "text": f"![]({image})"}])),
            (CHAT, schema_of({"$ref": f"{url}/schema.json"})),
            (CHAT, schema_of({"$id": url, "$dynamicRef": "other.json"})),
            (CHAT, chat(model=url)),
            (CHAT, chat(chat_template=url)),
            (CHAT, chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"$ref": url}}}])),
            (CHAT, chat(documents=[{"title": "a", "text": image, "url": image}])),
        ]
        for source in (image, slashes, f"{url}\\@example.com", "file:///etc/passwd", "data:image/png;base64,iVBORw0K"):
            bodies.append((CHAT, said([{"type": "image_url", "image_url": {"url": source}}])))
            bodies.append((CHAT, said([{"type": "video_url", "video_url": {"url": source}}])))
            bodies.append((CHAT, said([{"type": "input_audio", "input_audio": {"data": source, "format": "wav"}}])))
        for path, body in bodies:
            answer = client.post(path, json=body)
            assert answer.status_code in (200, 400, 422), f"{body}: {answer.text}"
            assert "root:" not in answer.text
        assert visits == []
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))).close()
        deadline = time.monotonic() + 30
        while not visits and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(visits) == 1, "a visit is seen"


def test_pictures_are_refused_before_anything_decodes_them(client: httpx.Client) -> None:
    """Whatever is in them: no decoder's words come back, and nothing was counted, scaled or kept."""
    for data in ("", "iVBORw0K", "R0lGODlhAQABAAAAACw=", "A" * 1_000_000):
        body = said([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}])
        answer = client.post(CHAT, json=body)
        assert answer.status_code == 400, answer.text
        assert "messages" in answer.text
        assert "0x" not in answer.text
        assert len(answer.content) < 1000


SAY = f"say {MARKER}"


def marked_generations() -> list[Any]:
    grammars: list[Any] = [
        {"type": "regex", "value": f"({MARKER}"},
        {"type": "regex", "value": f"{MARKER}(?!a)"},
        {"type": "regex", "value": MARKER},
        {"type": "json", "value": {"type": MARKER}},
        {"type": "json", "value": {"type": "object", "properties": {MARKER: {"pattern": f"{MARKER}("}}}},
        {"type": "json", "value": {"$ref": f"#/{MARKER}"}},
        {"type": "json", "value": MARKER},
        {"type": MARKER, "value": MARKER},
        {"type": "lark", "value": f'start: {MARKER} "{MARKER}" %'},
    ]
    return [
        *(parameters(grammar=grammar) for grammar in grammars),
        parameters() | {"inputs": SAY},
        parameters(stop=[MARKER]),
        parameters(stop=MARKER),
        parameters(temperature=MARKER),
        parameters(adapter_id=MARKER),
        parameters(max_new_tokens=10_000) | {"inputs": SAY},
        parameters(details=MARKER),
        {"inputs": [MARKER]},
        {"inputs": {MARKER: MARKER}},
        {MARKER: MARKER},
        {"inputs": SAY * 2000},
    ]


def marked_chats() -> list[Any]:
    call = {"id": MARKER, "type": "function", "function": {"name": MARKER, "arguments": f'{{"{MARKER}": 1}}'}}
    tool = {"type": "function", "function": {"name": MARKER, "description": MARKER, "parameters": {"type": MARKER}}}
    return [
        said(SAY),
        said([{"type": "text", "text": SAY}, {"type": MARKER}]),
        said([{"type": "image_url", "image_url": {"url": f"http://{MARKER}/"}}]),
        chat(messages=[{"role": MARKER, "content": SAY, "name": MARKER}]),
        chat(messages=[{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": MARKER}]),
        chat(messages=MARKER),
        chat(tools=[tool]),
        chat(tools=[tool], tool_choice={"type": "function", "function": {"name": MARKER}}),
        chat(tools=[tool], tool_choice=MARKER),
        chat(tool_choice={"type": "function", "function": {"name": MARKER}}),
        chat(model=MARKER),
        chat(user=MARKER),
        chat(stop=[MARKER]),
        chat(logit_bias={MARKER: 1}),
        chat(chat_template=MARKER),
        chat(chat_template_kwargs={MARKER: MARKER, "messages": MARKER}),
        chat(response_format={"type": MARKER}),
        chat(response_format={"type": "regex", "regex": f"({MARKER}"}),
        chat(reasoning_effort=MARKER),
        schema_of({"type": "object", "properties": {MARKER: {"type": MARKER}}}),
        schema_of({"type": "object", "required": [MARKER], "properties": {MARKER: False}}),
        chat(stream=MARKER),
        chat(n=MARKER),
    ]


def marked_completions() -> list[Any]:
    return [
        {"prompt": SAY, "max_tokens": 1},
        {"prompt": {MARKER: 1}},
        {"prompt": SAY, "suffix": MARKER},
        {"prompt": SAY, "model": MARKER, "max_tokens": 1},
        {"prompt": [SAY] * 100},
    ]


def marked_bodies() -> list[tuple[str, Any]]:
    """Bodies of every kind, with the marker in a place of each: answered or refused."""
    generations, chats, completions = marked_generations(), marked_chats(), marked_completions()
    everything = [(path, body) for path in (GENERATE, "/generate_stream", "/", "/tokenize") for body in generations]
    everything += [(path, body) for path in (CHAT, "/chat_tokenize", "/invocations") for body in chats]
    everything += [(path, body) for path in (COMPLETIONS, "/invocations") for body in completions]
    everything += [("/vertex", {"instances": [body, {MARKER: 1}]}) for body in (generations[9], chats[0], MARKER)]
    everything += [
        (
            "/v2/models/m/versions/1/infer",
            {"id": MARKER, "inputs": [{"data": list(data)}], "outputs": [{"name": MARKER}]},
        )
        for data in (SAY.encode(), b"\xff" + SAY.encode())
    ]
    return everything


def test_what_clients_write_is_in_no_log_and_in_no_metric(server: Server, client: httpx.Client) -> None:
    statuses = set()
    for path, body in marked_bodies():
        answer = client.post(path, json=body)
        statuses.add(answer.status_code)
        assert answer.status_code < 500, f"{path} {body}: {answer.text}"
        raw = json.dumps(body)
        statuses.add(client.post(path, content=raw[:-1], headers={"content-type": "application/json"}).status_code)
    for path in (f"/{MARKER}", f"/v1/{MARKER}", f"/v1/models/{MARKER}", f"/info?{MARKER}", f"/generate/{MARKER}"):
        statuses.add(client.get(path).status_code)
    for name, value in (("authorization", f"Bearer {MARKER}"), ("x-request-timeout", MARKER), ("cookie", MARKER)):
        statuses.add(client.post(GENERATE, json=parameters(), headers={name: value}).status_code)
    assert statuses >= {200, 400, 401, 404, 422}
    assert MARKER not in client.get("/metrics").text
    lines = [line for line in server.output().splitlines() if MARKER in line]
    assert lines == [], f"{len(lines)} lines, as\n" + "\n".join(lines[:20])
    assert "Success" in server.output(), "requests are logged"


def test_running_out_of_files_refuses_newcomers_and_ends_nothing(server: Server, client: httpx.Client) -> None:
    [router] = server.children("millrace-router")
    before = resource.prlimit(router, resource.RLIMIT_NOFILE)
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    body = parameters(max_new_tokens=400, ignore_eos=True)
    opened: list[socket.socket] = []
    with client.stream("POST", "/generate_stream", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        files = len(list(Path(f"/proc/{router}/fd").iterdir()))
        resource.prlimit(router, resource.RLIMIT_NOFILE, (files + 8, before[1]))
        try:
            opened += [socket.create_connection(address) for _ in range(100)]
            rest = [line for line in lines if line]
        finally:
            for connection in opened:
                connection.close()
            resource.prlimit(router, resource.RLIMIT_NOFILE, before)
    assert '"generated_text"' in rest[-1]
    assert client.post(GENERATE, json=parameters()).status_code == 200
    assert server.children("millrace-router") == [router]
