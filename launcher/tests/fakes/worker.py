"""Stands in for a worker: listens on its unix socket, watches its lifeline, and misbehaves as FAKE_WORKER says.

Leaves `worker-RANK-PID.json` in FAKE_DIR with its pid, arguments and environment.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

behaviour = os.environ.get("FAKE_WORKER", "")
folder = Path(os.environ["FAKE_DIR"])
rank = os.environ["RANK"]
prefix = next(word.partition("=")[2] for word in sys.argv if word.startswith("--uds-path="))


def watch_lifeline() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def note(**facts: object) -> None:
    path = folder / f"worker-{rank}-{os.getpid()}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps({"pid": os.getpid(), "argv": sys.argv, "env": dict(os.environ), **facts}))
    unfinished.rename(path)


threading.Thread(target=watch_lifeline, daemon=True).start()
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "ignore-term" else lambda *_: os._exit(0))
signal.signal(signal.SIGUSR1, lambda *_: print("stacks of this rank", file=sys.stderr, flush=True))
earlier_generations = len(list(folder.glob(f"worker-{rank}-*.json")))
child = subprocess.Popen(["sleep", "600"]) if behaviour == "has-child" else None
note(child=child and child.pid)
if behaviour == "die-at-start" and rank == "0":
    sys.stderr.write("Traceback of this rank\nError: the weights are made of cheese")
    sys.stderr.flush()
    os._exit(1)
if behaviour == "die-when-restarted" and earlier_generations:
    os._exit(7)
if behaviour == "hang-in-load" and rank == "1":
    print(json.dumps({"level": "INFO", "message": "imported", "start_ms": 1, "import_ms": 5}), flush=True)
    time.sleep(600)
record = {"timestamp": "2026-01-02T03:04:05.678901Z", "level": "INFO", "message": "model loaded", "load_ms": 5}
early = {"start_ms": 1, "import_ms": 5, "device": "cpu", "dtype": "float32"}
print(json.dumps({"level": "INFO", "message": "imported", **early}), flush=True)
print(json.dumps(record), flush=True)
listener = socket.socket(socket.AF_UNIX)
Path(f"{prefix}-{rank}").unlink(missing_ok=True)
listener.bind(f"{prefix}-{rank}")
print(json.dumps(record | {"message": "prepared", "prepare_ms": 5}), flush=True)
listener.listen()  # from here on health may say that all is ready
while True:
    time.sleep(60)
