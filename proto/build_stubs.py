"""Generates the Python gRPC stubs into `millrace_worker/proto/`: as a hatch build hook and by `make proto`.

The oldest supported generator is used: stubs made by a newer grpcio-tools refuse an older grpcio.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "worker" / "millrace_worker" / "proto"


def generate() -> None:
    """Compiles `proto/worker.proto`; the stubs import each other relative to their package."""
    from grpc_tools import protoc  # pyright: ignore[reportMissingImports]

    TARGET.mkdir(parents=True, exist_ok=True)
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={TARGET}", f"--pyi_out={TARGET}"]
    if protoc.main([*arguments, f"--grpc_python_out={TARGET}", "worker.proto"]) != 0:
        raise RuntimeError("proto/worker.proto does not compile")
    service = TARGET / "worker_pb2_grpc.py"
    text = service.read_text(encoding="utf-8")
    service.write_text(text.replace("import worker_pb2 as", "from . import worker_pb2 as"), encoding="utf-8")


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # pyright: ignore[reportMissingImports]
except ImportError:  # run by hand
    pass
else:

    class StubsBuildHook(BuildHookInterface):  # hatchling finds the one subclass in this file
        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            generate()


if __name__ == "__main__":
    generate()
