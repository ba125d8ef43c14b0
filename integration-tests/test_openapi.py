"""The server does what its OpenAPI document says, whatever it is sent. `make fuzz-api` asks for longer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import fuzzing
from conftest import Launch


def test_a_fuzzer_finds_no_undocumented_answer(
    checkpoint: Callable[..., Path], launch_module: Launch, tmp_path: Path
) -> None:
    server = launch_module(checkpoint(), "--dtype", "float32", "--max-total-tokens", "48", KSERVE="true")
    ended = fuzzing.fuzz(server.url, 25, tmp_path, examples=5, phases="fuzzing")
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", ended.stdout)
    assert tested is not None
    assert int(tested.group(1)) >= 12, ended.stdout[-3000:]
    assert server.health() == 200
