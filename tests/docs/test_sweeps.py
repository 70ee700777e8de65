"""Hold `docs/sweeps.md` to what the command takes: its ranges, tables and snippets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from finetune.cli import groups
from finetune.cli.schema import CHOICES
from finetune.cli.space import read_dimension

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"

TEXT = PAGE.read_text(encoding="utf-8")

RANGES = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*) \| .* \|$", TEXT.split("## Spaces")[0], re.MULTILINE)))


def first_column(heading: str) -> list[str]:
    """Return the names in the first column of the table below a heading."""
    table = TEXT.split(heading)[1].split("\n\n##")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


@pytest.mark.parametrize("typed", RANGES)
def test_ranges_of_the_page_are_read(typed: str) -> None:
    (word,) = shlex.split(typed)
    override = OverridesParser.create().parse_override(word)
    assert override.is_sweep_override()
    if "glob" not in word:
        assert read_dimension(override).first


def test_tables_of_the_page_name_all_that_there_is() -> None:
    assert len(RANGES) >= 8
    assert sorted(first_column("## Spaces")) == groups.group_options("sweep/space")
    assert ("none", *first_column("### Pruning")) == CHOICES["sweep.pruner"]
    samplers = next(line for line in TEXT.splitlines() if line.startswith("| `sweep.sampler`"))
    assert set(CHOICES["sweep.sampler"]) <= set(re.findall(r"`(\w+)`", samplers))


def test_snippet_reads_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep").mkdir()
    storage = JournalStorage(JournalFileBackend("sweep/study.journal"))
    study = optuna.create_study(study_name="finetune", storage=storage, direction="maximize")
    trial = study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(0.5, 0.5)})
    study.tell(trial, 0.25)
    document = Document.parse(str(PAGE), PythonCodeBlockParser())
    for example in document:
        example.evaluate()
    assert capsys.readouterr().out == "{'optimizer.lr': 0.5} 0.25\n0 COMPLETE 0.25 {'optimizer.lr': 0.5}\n"
