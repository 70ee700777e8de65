"""Hold the tables of `docs/data.md` to the tests that they name."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import require_tests

ROOT = Path(__file__).parents[2]


def test_every_row_of_what_can_be_read_names_a_test() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith(("| layout", "| what"))]
    require_tests(rows)
