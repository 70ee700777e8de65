"""Hold `docs/cluster.md` to the batch files that it shows, and to the tests that it names."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import require_tests

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_every_batch_file_as_it_is() -> None:
    text = (DOCS / "cluster.md").read_text()
    files = sorted(DOCS.glob("slurm/*.sbatch"))
    assert len(files) == 4
    for path in files:
        assert f"`docs/slurm/{path.name}`\n\n```bash\n{path.read_text()}```\n" in text, path


def test_every_row_of_what_holds_names_a_test() -> None:
    text = (DOCS / "cluster.md").read_text().partition("## What holds")[2]
    require_tests([row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| what")])
