"""A Hugging Face hub small enough to read: the endpoints that huggingface_hub uses to find and fetch a model.

Repositories are folders of bytes in memory. Every request is recorded; a file's download can be cut short once, and a
repository can ask for a token, be gated, or not answer at all until it is released.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40})
    token: str | None = None
    gated: bool = False
    status: int | None = None
    cut_once: dict[str, int] = field(default_factory=dict)
    hold: threading.Event | None = None

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.revisions.values() else self.revisions.get(revision)


class StandInHub:
    """Serves `repositories` (by name) on a port of its own until `close`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        hub = self

        class Handler(_Handler):
            hub = self

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{hub._server.server_address[1]}"

    def fetched(self, method: str = "GET") -> list[str]:
        """Names of the files that were asked for."""
        marker = "/resolve/"
        return [
            path.split(marker)[1].split("/", 1)[1]
            for verb, path, _ in self.requests
            if verb == method and marker in path
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: StandInHub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        name, repository, rest = self._find(path)
        if repository is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
            return
        if repository.hold is not None:
            repository.hold.wait(30)
        if repository.status is not None:
            self._refuse(repository.status, "", "the hub is unwell")
        elif repository.token and self.headers.get("authorization") != f"Bearer {repository.token}":
            code = "GatedRepo" if repository.gated else "RepoNotFound"
            self._refuse(401, code, f"Access to model {name} is restricted")
        elif path.startswith("/api/"):
            self._describe(name, repository, rest)
        else:
            self._file(repository, rest, with_body)

    def _find(self, path: str) -> tuple[str, Repository | None, list[str]]:
        words = path.removeprefix("/api/models/").removeprefix("/").split("/")
        name = "/".join(words[:2])
        return name, self.hub.repositories.get(name), words[2:]

    def _describe(self, name: str, repository: Repository, rest: list[str]) -> None:
        kind, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        commit = repository.commit(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif kind == "tree":
            self._json([{"type": "file", "path": file, **_facts(data)} for file, data in repository.files.items()])
        else:
            siblings = [{"rfilename": file, "size": len(data)} for file, data in repository.files.items()]
            self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []})

    def _file(self, repository: Repository, rest: list[str], with_body: bool) -> None:
        commit, file = repository.commit(rest[1]), "/".join(rest[2:])
        data = repository.files.get(file)
        if commit is None or data is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        start = 0
        asked = self.headers.get("range", "")
        if asked.startswith("bytes="):
            start = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("etag", f'"{_facts(data)["oid"]}"')
        self.send_header("x-repo-commit", commit)
        self.send_header("accept-ranges", "bytes")
        self.send_header("content-length", str(len(data) - start))
        if start:
            self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if with_body:
            end = repository.cut_once.pop(file, len(data))
            self.wfile.write(data[start:end])
            if end < len(data):
                self.close_connection = True

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("x-error-code", code)
        self.send_header("x-error-message", message)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _facts(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "oid": hashlib.sha1(data).hexdigest()}
