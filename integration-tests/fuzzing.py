"""Requests made up from `/api-doc/openapi.json`, right ones and wrong ones: `make fuzz-api SECONDS=300`.
A second number is the seed of an earlier run, which is printed at its end.

schemathesis looks at each answer: its status must be documented, its media type and its body must be what the document
says, what breaks a schema must be refused, and nothing may be a failure of the server.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


# A request that allows itself next to no time gets what it asked for: 504 is no failure of the server.
SETTINGS = """
[checks.not_a_server_error]
expected-statuses = ["2XX", "3XX", "4XX", 504]
"""


def fuzz(
    url: str, seconds: int, folder: Path, *, examples: int, phases: str, seed: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Fuzzes the server at `url` for at most so many seconds; `folder` takes what the fuzzer writes."""
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS)
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        *("--config-file", str(settings)),
        *("run", f"{url}/api-doc/openapi.json", "--phases", phases),
        *("--checks", ",".join(CHECKS), "--max-time", str(seconds), "--max-examples", str(examples)),
        *("--continue-on-failure", "--no-color", "--no-shrink", "--generation-database", "none"),
        *("--request-timeout", "60", "--warnings", "off"),
        *(() if seed is None else ("--seed", str(seed))),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + 120, check=False)


def main() -> int:
    import checkpoints
    from conftest import running

    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = checkpoints.make(folder / "model", "llama")
        flags = ("--max-total-tokens", "64", "--strict-model-names")
        with running(model, folder / "launcher.log", *flags, KSERVE="true") as server:
            ended = fuzz(server.url, seconds, folder, examples=1000, phases="examples,coverage,fuzzing", seed=seed)
        sys.stdout.write(ended.stdout + ended.stderr)
        return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
