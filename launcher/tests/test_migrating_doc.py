"""The page for people who come from TGI says what flags and deviations say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from millrace_launcher.flag import Status
from millrace_launcher.flags import FLAG_TABLE
from millrace_launcher.migrating_doc import document

DOCS = Path(__file__).parents[2] / "docs"


def deviations() -> list[dict[str, Any]]:
    return json.loads((DOCS / "deviations.json").read_text(encoding="utf-8"))


def test_the_page_is_what_its_sources_say() -> None:
    page = (DOCS / "migrating-from-tgi.md").read_text(encoding="utf-8")
    assert page == document(deviations()), "run: make docs"


def test_every_deviation_and_every_flag_with_a_catch_is_on_the_page() -> None:
    page = document(deviations())
    assert all(deviation["reason"] in page for deviation in deviations())
    assert all(row.long in page for row in FLAG_TABLE if row.flag.status is not Status.SERVED)
    assert "`--strict-model-names`" in page
    assert "`--max-best-of`" not in page
