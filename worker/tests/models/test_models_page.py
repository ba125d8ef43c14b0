"""docs/models.md says of every architecture what the table of cases and the registry say."""

from __future__ import annotations

from millrace_worker.models.architectures import ARCHITECTURES, ENCODER_DECODERS

from .cases import CASES
from .table import BACKEND, NATIVE, PAGE, TOLERANCE, Row, exactness, page


def rows() -> dict[str, list[str]]:
    """The cells of each model type."""
    lines = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `"))
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[1].strip("`"): row for row in cells}


def test_every_case_is_on_the_page_with_its_ranks() -> None:
    expected: dict[str, set[int]] = {}
    for case in CASES.values():
        expected.setdefault(case.model_type, set()).update(case.ranks if case.native else ())
    found = {model: {int(size) for size in row[2].split(",") if size != "–"} for model, row in rows().items()}
    assert found == expected, "run `make models`"


def test_every_case_of_the_backend_is_on_the_page() -> None:
    expected = {case.model_type for case in CASES.values() if case.backend}
    assert {model for model, row in rows().items() if row[3] != "–"} == expected, "run `make models`"


def test_nothing_on_the_page_is_red() -> None:
    assert not [model for model, row in rows().items() if "red" in row[4]]


def test_every_name_of_the_registry_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in (*ARCHITECTURES, *ENCODER_DECODERS) if f"`{name}`" not in text], (
        "add these to docs/models.md"
    )


def test_a_row_shows_the_greatest_difference_and_where_it_ran() -> None:
    row = Row("ALM", "a")
    row.add((NATIVE, 2), 2e-5)
    row.add((NATIVE, 1), TOLERANCE / 2)
    row.add((BACKEND, 1), 1e-6)
    assert row.cells() == ["`ALM`", "`a`", "1, 2", "1", "≤ 1e-4", ""]
    assert page([row]).splitlines()[-1] == "| `ALM` | `a` | 1, 2 | 1 | ≤ 1e-4 |  |"
    assert exactness(2e-3) == "red"
