"""Hold the tables of `docs/data.md` to the tests that they name."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_of_what_can_be_read_names_a_test() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith(("| layout", "| what"))]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) > 10
    for row in rows:
        names = re.findall(r"`(test_\w+)(?:\[[^`]*\])?`", row)
        assert names, row
        for name in names:
            assert f"def {name}(" in tests, name
