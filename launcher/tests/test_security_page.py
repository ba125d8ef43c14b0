"""docs/security.md and docs/recovery.md name the test that holds each of their lines: it has to exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/security.md", "docs/recovery.md")
NAMED = re.compile(r"`([\w/.-]+\.(?:py|rs))::(\w+)`")


def rows(page: str) -> list[str]:
    """Lines of its tables, without their heads."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.startswith("| ")]
    heads = {lines[at - 1] for at, line in enumerate(lines) if line.startswith("| ---")}
    return [line for line in kept if line not in heads and not line.startswith("| ---")]


def has_test(path: Path, name: str) -> bool:
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        return name.startswith("test_") and any(function.name == name for function in functions)
    attribute = r"#\[(?:tokio::)?test\b[^\]]*\]\s*(?:#\[[^\]]*\]\s*)*(?:async )?fn "
    in_macro = r"#\[test\]\s*fn "
    return re.search(rf"(?:{attribute}|{in_macro}){name}\(", text) is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_line_names_a_test_that_exists(page: str) -> None:
    found = rows(page)
    assert len(found) > 15
    for row in found:
        named = NAMED.findall(row)
        assert named, f"no test: {row}"
        missing = [f"{path}::{name}" for path, name in named if not has_test(ROOT / path, name)]
        assert missing == [], row


def test_a_test_that_does_not_exist_is_noticed() -> None:
    here = Path(__file__)
    assert has_test(here, "test_a_test_that_does_not_exist_is_noticed")
    assert not has_test(here, "test_that_was_renamed")
    assert not has_test(here, "has_test")
    assert has_test(ROOT / "router/src/app/tests/start.rs", "the_port_is_open_before_there_are_workers")
    assert not has_test(ROOT / "router/src/app/tests.rs", "send")
