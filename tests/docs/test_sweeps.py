"""Hold `docs/sweeps.md` to what the command takes: its commands, ranges, tables and snippets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from finetune.cli import compose, groups
from finetune.cli.arguments import SWEEP_FLAGS, prepare_arguments
from finetune.cli.recipes import expand_recipes
from finetune.cli.schema import CHOICES
from finetune.cli.space import read_dimension

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"

TEXT = PAGE.read_text(encoding="utf-8")

COMMANDS = re.findall(r"^python -m finetune\.train (.*)$", TEXT, re.MULTILINE)

RANGES = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*) \| .* \|$", TEXT.split("## Spaces")[0], re.MULTILINE)))


def first_column(heading: str) -> list[str]:
    """Return the names in the first column of the table below a heading."""
    table = TEXT.split(heading)[1].split("\n\n##")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


@pytest.mark.usefixtures("_page_folder")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_are_sweeps_whose_first_point_is_valid(command: str, tmp_path: Path) -> None:
    groups.register_models()
    words = shlex.split(command)
    if "--config-dir" in words:
        i = words.index("--config-dir")
        words[i : i + 2] = [f"hydra.searchpath=['file://{tmp_path / words[i + 1]}']"]
    prepared = prepare_arguments("train", expand_recipes(words))
    assert (SWEEP_FLAGS & set(prepared)) or "experiment=" in command
    compose.compose_first_point("train", [word for word in prepared if word not in SWEEP_FLAGS])


@pytest.fixture
def _page_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which a reader of the page would be: photos, and the space of one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    sweep = tmp_path / "runs" / "train" / "sweeps" / "2026-11-26_16-35-40"  # of an example
    sweep.mkdir(parents=True)
    words = ["data=imagefolder", "data.root=photos", "optimizer.lr=0.1,0.01"]
    record = {"hydra": {"runtime": {"cwd": str(tmp_path)}, "overrides": {"task": words}}}
    OmegaConf.save(OmegaConf.create(record), sweep / "multirun.yaml")
    recipe = {"defaults": [{"override /data": "imagefolder"}], "data": {"root": "photos"}, "optimizer": {"lr": 0.1}}
    OmegaConf.save(OmegaConf.create(recipe), sweep / "best_config.yaml")
    space = tmp_path / "conf" / "sweep" / "space" / "mine.yaml"
    space.parent.mkdir(parents=True)
    space.write_text(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1])  # type: ignore[index]


@pytest.mark.parametrize("typed", RANGES)
def test_ranges_of_the_page_are_read(typed: str) -> None:
    (word,) = shlex.split(typed)
    override = OverridesParser.create().parse_override(word)
    assert override.is_sweep_override()
    if "glob" not in word:
        assert read_dimension(override).first


def test_tables_of_the_page_name_all_that_there_is() -> None:
    assert len(COMMANDS) >= 5
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
