"""Run the recipes of `docs/in_your_own_code.md`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

PAGE = Path(__file__).parents[2] / "docs" / "in_your_own_code.md"
HEADING = re.compile(r"^#{2,3} (.+)$", re.MULTILINE)


def parse() -> Document:
    return Document.parse(str(PAGE), SkipParser(), PythonCodeBlockParser())


def heading_of(document: Document, position: int) -> str:
    """The heading above a position; empty before the first one."""
    return next((m[1] for m in reversed([*HEADING.finditer(document.text, 0, position)])), "")


def headings_with_recipes() -> list[str]:
    document = parse()
    return list(filter(None, dict.fromkeys(heading_of(document, example.start) for example in document)))


@pytest.fixture
def page(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Document:
    """The page, read in a folder that holds `photos/`."""
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["script.py"])  # LightningCLI looks at it
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning calls
    return parse()


def run(page: Document, *headings: str) -> dict[str, Any]:
    """Run the blocks above the first heading, and those below some; return the names that they defined."""
    page.namespace["__name__"] = "__main__"
    for example in page:
        if heading_of(page, example.start) in ("", *headings):
            example.evaluate()
    return page.namespace


@pytest.mark.parametrize("heading", headings_with_recipes())
def test_the_recipes_below_a_heading_run_by_themselves(heading: str, page: Document) -> None:
    run(page, heading)
