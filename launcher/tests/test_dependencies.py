"""The check of licences knows which expressions can be met."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / ".ci" / "dependencies.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dependencies", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT OR Apache-2.0", True),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
        ("(MIT OR Apache-2.0) AND GPL-2.0", False),
        ("GPL-2.0 AND (MIT OR Apache-2.0)", False),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", True),
        ("GPL-3.0 WITH GCC-exception-3.1", False),
        ("Proprietary", False),
        ("none", False),
        ("", False),
    ],
)
def test_an_expression_is_allowed_if_it_can_be_met(check: ModuleType, expression: str, allowed: bool) -> None:
    assert check.is_allowed(expression) == allowed


def test_a_crate_from_elsewhere_is_noticed(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = '[[package]]\nname = "a"\nversion = "1"\nsource = "git+https://example.com/a"\n'
    (tmp_path / "Cargo.lock").write_text(package)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    found = check.crates()
    assert "comes from git+https://example.com/a" in next(found)
    assert "no checksum" in next(found)


def test_an_unknown_licence_is_noticed(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{word}==1" for word in ("numpy", "torch")]
    (tmp_path / "constraints.txt").write_text("\n".join([*names, "x @ https://example.com/x.whl"]))
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "LICENCES", {"MIT"})
    wrong = list(check.packages())
    assert any(line.startswith("numpy: licence") for line in wrong)
    assert any("names a source of its own" in line for line in wrong)
