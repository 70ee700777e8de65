"""Hold `docs/tracking.md` to the tests that it names, and run its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.helpers import require_tests

PAGE = Path(__file__).parents[2] / "docs" / "tracking.md"


def test_every_row_of_what_loggers_do_names_a_test() -> None:
    rows = [row for row in PAGE.read_text().splitlines() if row.startswith("| ")]
    require_tests([row for row in rows if not row.startswith(("| `logger=`", "| what |", "| logger |"))])


@pytest.mark.slow
def test_the_logged_model_is_used_as_the_page_says(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    document = Document.parse(str(PAGE), PythonCodeBlockParser())
    try:
        for example in document:
            example.evaluate()
    finally:
        # none, as before: whatever is set here holds for the whole process, and goes before the environment variable
        mlflow.set_tracking_uri(None)
    answers = document.namespace["answers"]
    assert list(answers.columns)[:2] == ["label", "confidence"]
    expected = document.namespace["done"].module.classes
    assert answers["label"].iloc[0] in expected
