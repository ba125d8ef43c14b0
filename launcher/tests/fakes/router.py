"""Stands in for the router: /health is 200 when every worker's socket accepts; misbehaves as FAKE_ROUTER says."""

import http.server
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

behaviour = os.environ.get("FAKE_ROUTER", "")
flags = {word.partition("=")[0].removeprefix("--"): word.partition("=")[2] for word in sys.argv[1:]}
folder = Path(os.environ["FAKE_DIR"])


told_of_the_end = threading.Event()


def watch_lifeline() -> None:
    for line in sys.stdin:
        print(f"router was told: {line}", end="", flush=True)
        if '"end"' in line:
            told_of_the_end.set()
    os._exit(1)


def workers_accept() -> bool:
    for rank in range(int(flags["num-shard"])):
        with socket.socket(socket.AF_UNIX) as connection:
            if connection.connect_ex(f"{flags['worker-uds-path']}-{rank}") != 0:
                return False
    return True


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/livez" and (folder / "hang").exists():
            hung = {"rank": 1, "generation": 1, "reason": "it stands still", "report": "figures\n"}
            body = json.dumps({"ok": False, "hung": hung}).encode()
            self.send_response(503)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if (folder / "busy").exists():  # as when all connections are taken
            while True:
                threading.Event().wait(0.05)
        if self.path == "/livez":
            self.send_response(503 if (folder / f"still-{os.getpid()}").exists() else 200)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(200 if workers_accept() and behaviour != "never-ready" else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def end(*_: object) -> None:
    if os.environ.get("FAKE_WORKER") == "die-when-restarted":
        told_of_the_end.wait(5)  # a real router goes on to listen while it drains
    print("router: draining", flush=True)
    if behaviour == "never-ready":
        threading.Event().wait(0.5)
        print(f"router: workers at its end: {workers_accept()}", flush=True)
    os._exit(0)


threading.Thread(target=watch_lifeline, daemon=True).start()
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "ignore-term" else end)
note = folder / f"router-{os.getpid()}.json"
note.with_suffix(".part").write_text(
    json.dumps({"pid": os.getpid(), "argv": sys.argv, "env": dict(os.environ), "flags": flags})
)
note.with_suffix(".part").rename(note)
if behaviour == "die-at-start":
    print("error: the router has a headache", file=sys.stderr, flush=True)
    os._exit(9)
if behaviour.startswith("log-"):
    message = '`max_total_tokens` is 9, which is "too" large'
    time = "2026-01-02T03:04:05.678901Z"
    forms = {
        "log-text-and-die": f"{time} ERROR millrace_router: router/src/main.rs:25: {message}",
        "log-coloured-and-die": f"{dim(time)} \x1b[31mERROR\x1b[0m {dim('millrace_router')}{dim(':')} "
        f"{dim('router/src/main.rs')}{dim(':')}{dim('25:')} {message}",
        "log-json-and-die": json.dumps({"timestamp": time, "level": "ERROR", "message": message}),
    }
    print(forms[behaviour], flush=True)
    os._exit(1)
server = http.server.ThreadingHTTPServer((flags["hostname"], int(flags["port"])), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=int(os.environ["LISTEN_FDS_FIRST_FD"]))
print("router: listening", flush=True)
server.serve_forever()
