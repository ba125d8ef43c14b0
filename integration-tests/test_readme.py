"""The README's examples run as they are written (but for the port), and say something."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Launch, Server

README = Path(__file__).resolve().parent.parent / "README.md"
EXAMPLES = re.findall(r"```(bash|python)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def server(launch_module: Launch) -> Server:
    return launch_module("demo")


def test_there_are_examples() -> None:
    assert [language for language, _ in EXAMPLES] == ["bash", "bash", "bash", "python", "python"]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, server: Server) -> None:
    language, text = EXAMPLES[number]
    text = text.replace("http://127.0.0.1:3000", server.url)
    command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert '"error":' not in done.stdout
    assert done.stdout.strip()
