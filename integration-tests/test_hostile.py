"""Bodies that mean harm: each is refused at once, and nobody else notices.

`MILLRACE_SHOW=1` with `pytest -s` prints how long each took and the longest pause of the stream beside them.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Launch, Server

LIMIT = 2_000_000  # the default of --payload-limit
# A refusal takes milliseconds; a machine under load may need more. What would hang takes far longer.
PATIENCE = 10.0


@pytest.fixture(scope="module")
def server(checkpoint: Callable[..., Path], launch_module: Launch) -> Server:
    return launch_module(checkpoint(), "--dtype", "float32", "--max-total-tokens", "2048")


@dataclass
class Beside:
    """A stream that runs while others misbehave."""

    tokens: int = 0
    longest_pause: float = 0.0
    errors: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, url: str) -> None:
        asked = {"prompt": "def check(", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        while not self.over.is_set():
            with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as answer:
                last = time.monotonic()
                for line in answer.iter_lines():
                    self.longest_pause = max(self.longest_pause, time.monotonic() - last)
                    last = time.monotonic()
                    if '"error"' in line:
                        self.errors.append(line)
                    self.tokens += line.startswith("data: {")
                    if self.over.is_set():
                        break


@contextmanager
def beside(server: Server) -> Iterator[Beside]:
    stream = Beside()
    thread = threading.Thread(target=stream.run, args=(server.url,), daemon=True)
    thread.start()
    try:
        yield stream
    finally:
        stream.over.set()
        thread.join(60)


GENERATE, CHAT, COMPLETIONS = "/generate", "/v1/chat/completions", "/v1/completions"


def text(value: str) -> str:
    """The body of a request with this text for JSON as prompt."""
    return f'{{"inputs":{value}}}'


def parameters(value: str) -> str:
    return f'{{"inputs":"a","parameters":{value}}}'


def chat(**more: Any) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1} | more)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def schema(value: Any) -> str:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}})


BODIES: dict[str, tuple[str, str | bytes]] = {
    "lists without end": (GENERATE, text(nested(900_000))),
    "objects without end": (GENERATE, '{"inputs":' * 190_000),
    "nested parameters": (GENERATE, parameters('{"stop":' * 200_000)),
    "nested unknown key": (CHAT, f'{{"x":{nested(900_000)},"messages":[]}}'),
    "nested template variables": (CHAT, f'{{"messages":[],"chat_template_kwargs":{{"x":{nested(900_000)}}}}}'),
    "nested schema": (CHAT, schema(json.loads('{"not":' * 900 + "{}" + "}" * 900))),
    "one letter": (GENERATE, text(f'"{"a" * (LIMIT - 100)}"')),
    "one letter in a conversation": (
        CHAT,
        json.dumps({"messages": [{"role": "user", "content": "a" * (LIMIT - 100)}]}),
    ),
    "one letter as prompt": (COMPLETIONS, json.dumps({"prompt": "a" * (LIMIT - 100)})),
    "blanks": (GENERATE, text(f'"{" " * (LIMIT - 100)}"')),
    "two bytes over the limit": (GENERATE, text(f'"{"a" * (LIMIT - 11)}"') + " "),
    "lone surrogate": (GENERATE, text(r'"\ud800"')),
    "swapped surrogates": (GENERATE, text(r'"\udc00\ud800"')),
    "lone surrogate in a conversation": (CHAT, r'{"messages":[{"role":"user","content":"\ud800"}]}'),
    "raw control character": (GENERATE, text('"a\x00b"')),
    "NUL after the body": (GENERATE, text('"a"') + "\x00"),
    "NaN": (GENERATE, parameters('{"temperature":NaN}')),
    "Infinity": (GENERATE, parameters('{"temperature":Infinity}')),
    "beyond a double": (GENERATE, parameters('{"temperature":1e400}')),
    "minus beyond a double": (CHAT, chat()[:-1] + ',"temperature":-1e999}'),
    "a million digits": (GENERATE, parameters(f'{{"seed":{"9" * 1_000_000}}}')),
    "a million digits behind the point": (GENERATE, parameters(f'{{"temperature":-0.{"1" * 1_000_000}}}')),
    "2^64 as seed": (GENERATE, parameters(f'{{"seed":{2**64}}}')),
    "2^32 tokens": (GENERATE, parameters(f'{{"max_new_tokens":{2**32}}}')),
    "2^64 choices": (CHAT, chat(n=2**64)),
    "4 billion choices": (CHAT, chat(n=2**32 - 1)),
    "4 billion best of": (COMPLETIONS, json.dumps({"prompt": "a", "best_of": 2**32 - 1})),
    "4 billion top tokens": (CHAT, chat(logprobs=True, top_logprobs=2**32 - 1)),
    "10^5 stop strings": (GENERATE, parameters(json.dumps({"stop": [f"s{i}" for i in range(100_000)]}))),
    "10^5 stop strings in a conversation": (CHAT, chat(stop=[f"s{i}" for i in range(100_000)])),
    "10^5 biases": (CHAT, chat(logit_bias={str(i): 1 for i in range(100_000)})),
    "10^5 prompts": (COMPLETIONS, json.dumps({"prompt": ["a"] * 100_000})),
    "10^5 token ids": (COMPLETIONS, json.dumps({"prompt": [1] * 100_000})),
    "token ids that do not exist": (COMPLETIONS, json.dumps({"prompt": [2**32 - 1]})),
    "40,000 messages": (CHAT, json.dumps({"messages": [{"role": "user", "content": "a"}] * 40_000})),
    "40,000 parts": (
        CHAT,
        json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 40_000}]}),
    ),
    "10^5 instances": ("/vertex", json.dumps({"instances": [{"inputs": "a"}] * 100_000})),
    "a template that does not exist": (CHAT, chat(chat_template="{{ 10**9 * 'a' }}")),
    "twice the same key": (GENERATE, '{"inputs":"a","inputs":"b"}'),
    "twice the same parameter": (GENERATE, parameters('{"stop":[],"stop":["a"]}')),
    "invalid UTF-8": (GENERATE, b'{"inputs":"\xff\xfe"}'),
    "an overlong form": (GENERATE, b'{"inputs":"\xc0\xaf"}'),
    "UTF-16": (GENERATE, text('"a"').encode("utf-16")),
    "a byte order mark": (GENERATE, text('"a"').encode("utf-8-sig")),
    "an image from elsewhere": (
        CHAT,
        chat(
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}]
        ),
    ),
    "a regex bomb": (
        GENERATE,
        parameters(json.dumps({"grammar": {"type": "regex", "value": "(a{1,30000}){1,30000}"}})),
    ),
    "a regex that does not end": (GENERATE, parameters(json.dumps({"grammar": {"type": "regex", "value": "((((("}}))),
    "a remote reference": (CHAT, schema({"$ref": "http://127.0.0.1:1/schema.json"})),
    "a reference to a file": (CHAT, schema({"$ref": "file:///etc/passwd"})),
    "a reference to itself": (CHAT, schema({"$ref": "#"})),
    "references in a ring": (
        CHAT,
        schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    ),
    "10^4 keys required": (
        CHAT,
        schema(
            {
                "type": "object",
                "required": [f"k{i}" for i in range(10_000)],
                "properties": {f"k{i}": {"type": "integer"} for i in range(10_000)},
            }
        ),
    ),
}


def test_hostile_bodies_are_refused_at_once_and_nobody_else_notices(server: Server) -> None:
    workers, routers = server.children("millrace_worker"), server.children("millrace-router")
    took: dict[str, float] = {}
    wrong: list[str] = []
    with beside(server) as stream, httpx.Client(timeout=60) as client:
        for name, (path, body) in BODIES.items():
            began = time.monotonic()
            content = body.encode() if isinstance(body, str) else body
            answer = client.post(server.url + path, content=content, headers={"content-type": "application/json"})
            took[name] = time.monotonic() - began
            if not 400 <= answer.status_code < 500 or len(answer.content) > 5_000 or not answer.json()["error"]:
                wrong.append(f"{name}: {answer.status_code} {answer.text[:200]} ({len(answer.content)} bytes)")
    show(took, stream)
    assert wrong == []
    assert not stream.errors
    assert stream.tokens > 0
    assert max(took.values()) < PATIENCE, max(took, key=lambda name: took[name])
    assert stream.longest_pause < PATIENCE
    assert (server.children("millrace_worker"), server.children("millrace-router")) == (workers, routers)


def show(took: dict[str, float], stream: Beside) -> None:
    if os.environ.get("MILLRACE_SHOW"):
        for name, seconds in sorted(took.items(), key=lambda item: -item[1])[:12]:
            print(f"{seconds * 1000:8.1f} ms  {name}")
        print(
            f"{len(took)} bodies; the stream beside: {stream.tokens} tokens, longest pause {stream.longest_pause:.3f} s"
        )


WRONG: list[Any] = [True, -1, 1.5, 10**30, "x", [], [None], {}, {"a": {}}, [[[[]]]]]


def test_wrong_types_in_every_field_are_answered_and_never_with_a_failure(server: Server) -> None:
    """What is wrong for a field is refused with the field's name; what happens to be right is answered."""
    schemas = httpx.get(f"{server.url}/api-doc/openapi.json", timeout=10).json()["components"]["schemas"]
    bases = {
        "GenerateParameters": (GENERATE, {"inputs": "a", "parameters": {}}, "parameters"),
        "ChatRequest": (CHAT, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}, None),
        "CompletionRequest": (COMPLETIONS, {"prompt": "a", "max_tokens": 1}, None),
    }
    refused = 0
    with httpx.Client(timeout=60) as client:
        for schema_name, (path, base, inside) in bases.items():
            for field_name in schemas[schema_name]["properties"]:
                for wrong in WRONG:
                    fields = {"max_new_tokens": 1, field_name: wrong} if inside else {field_name: wrong}
                    body = base | {inside: fields} if inside else base | fields
                    answer = client.post(server.url + path, json=body)
                    assert answer.status_code < 500, f"{path} {field_name}={wrong!r}: {answer.text[:300]}"
                    if answer.status_code != 200:
                        refused += 1
                        assert field_name in answer.text, f"{path} {field_name}={wrong!r}: {answer.text[:300]}"
    assert refused > 200


def test_what_only_looks_dangerous_is_answered(server: Server) -> None:
    """Control tokens and NUL in a user's text are text."""
    for content in ("</s><s>[INST]<|user|>", "\x00", "\ufffd\ufffe", "{{ 7 * 7 }}{% raw %}", "\u202e" * 50):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        answer = httpx.post(server.url + CHAT, json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        tokens = httpx.post(f"{server.url}/chat_tokenize", json=body, timeout=30).json()
        assert content in tokens["templated_text"]


def raw(server: Server, *pieces: bytes, wait: float = 5.0) -> bytes:
    """What comes back for these bytes; the connection is not closed from here."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            return connection.recv(65536)
        except (TimeoutError, ConnectionError):
            return b""


def test_requests_that_are_no_http_or_do_not_end_hold_nothing(server: Server) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with beside(server) as stream:
        huge = raw(server, head + b"X-Filler: " + b"a" * 1_000_000 + b"\r\n\r\n")
        assert huge == b"" or huge.startswith(b"HTTP/1.1 431")
        many = raw(server, head + b"".join(b"X-%d: a\r\n" % i for i in range(5_000)) + b"\r\n")
        assert many == b"" or many.startswith(b"HTTP/1.1 431")
        assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").startswith((b"", b"HTTP/1.1 400"))
        assert raw(server, head + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}").startswith(b"HTTP/1.1 400")
        assert raw(server, head + b"Content-Length: -1\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert raw(server, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n").startswith(b"HTTP/1.1 400")
        large = raw(server, head + b"Content-Length: 99999999999\r\n\r\n{")
        assert large.startswith(b"HTTP/1.1 413"), large[:100]
        # Chunks that never end: the answer comes whole, though not all of them are read.
        chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
        endless = raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 40)
        assert endless.startswith(b"HTTP/1.1 413"), endless[:100]
        assert b"\r\nconnection: close\r\n" in endless
        open_ones = [socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) for _ in range(100)]
        for connection in open_ones:
            connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert server.generate("a", max_new_tokens=1)["generated_text"] is not None
        for connection in open_ones:
            connection.close()
    assert not stream.errors
    assert stream.longest_pause < PATIENCE
    assert server.generate("a", max_new_tokens=1)["generated_text"] is not None
