"""How tests are shared out to parallel processes (`pytest -n 2 --dist loadgroup`): what shares a fixture, to one."""

from __future__ import annotations

import gc

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of one checkpoint in one process, which makes it, and its reference's answers, once; else by file."""
    for item in items:
        values = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        case = values.get("case")
        item.add_marker(pytest.mark.xdist_group(case if isinstance(case, str) else item.nodeid.split("::")[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """torch and transformers are half a million objects, which every collection of garbage would look through; and what
    the worker prepares begins with several."""
    gc.collect()
    gc.freeze()
    if getattr(session.config.option, "loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist has told this pytest of no groups"
