"""Hold every command line of the README and of the pages to what the commands take, without running it."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
from omegaconf import OmegaConf

from finetune.cli import compose, groups
from finetune.cli.arguments import SWEEP_FLAGS, prepare_arguments
from finetune.cli.errors import HYDRA_COMMANDS
from finetune.cli.main import COMMANDS
from finetune.cli.recipes import expand_recipes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(
    r"^(?:\$ )?(?:(?:srun|torchrun) .*?)?(?:(?:python )?-m finetune\.|finetune (?!\d))(.+)$", re.MULTILINE
)
INLINE = re.compile(r"`(?:python -m finetune\.|finetune )([^`]+)`")
NEEDS = {"hydra/launcher=": "submitit", "mlflow": "mlflow", "wandb": "wandb", "tensorboard": "tensorboard",
         "sweep=": "optuna", "timm:": "timm", "format=onnx": "onnxscript"}  # fmt: skip
"""Part of a command to the module of the extra that it needs."""


def commands_of(text: str) -> list[str]:
    """What follows `python -m finetune.` in the blocks and the sentences of a page."""
    joined = text.replace("\\\n", " ")
    blocks = [line for block in BLOCK.findall(joined) for line in PROMPT.findall(block)]
    return [*blocks, *INLINE.findall(BLOCK.sub("", joined))]


FOUND = [(page.name, command) for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"))]


RUNS = ("RUN", "runs/train/OLD", "runs/train/NEW", "runs/train/2026-11-23_10-00-00")
SWEEP = "runs/train/sweeps/2026-11-26_16-35-40"
OWN_YAML = {"sweeps": "my_conf/sweep/space", "strategies": "my_conf/strategy", "tracking": "own/logger"}
"""Page to the folder of its last YAML block, which the page calls `mine`."""


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader is: photographs, tables, runs, a sweep, and the YAML files that the pages show."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_photos", "photos", "new_photos", "scans", "ants_and_bees", "clothing"):
        (tmp_path / name / "ants").mkdir(parents=True)
    for name in ("labels.csv", "best.ckpt"):
        (tmp_path / name).touch()
    words = ["data=imagefolder", "data.root=photos"]
    for name in RUNS:
        for part in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", ".hydra/overrides.yaml", ".hydra/hydra.yaml"):
            (tmp_path / name / part).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / part).touch()
        OmegaConf.save(OmegaConf.create(words), tmp_path / name / ".hydra" / "overrides.yaml")
        OmegaConf.save({"hydra": {"runtime": {"cwd": str(tmp_path)}}}, tmp_path / name / ".hydra" / "hydra.yaml")
    (tmp_path / SWEEP).mkdir(parents=True)
    record = {"runtime": {"cwd": str(tmp_path)}, "overrides": {"task": [*words, "optimizer.lr=0.1,0.01"]}}
    OmegaConf.save({"hydra": record}, tmp_path / SWEEP / "multirun.yaml")
    recipe = {"defaults": [{"override /data": "imagefolder"}], "data": {"root": "photos"}, "optimizer": {"lr": 0.1}}
    OmegaConf.save(recipe, tmp_path / SWEEP / "best_config.yaml")
    for page, place in OWN_YAML.items():
        path = tmp_path / place / "mine.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(re.findall(r"```yaml\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)[-1])
    return tmp_path


@pytest.mark.parametrize(("page", "command"), FOUND)
def test_a_command_of_a_page_is_one_that_the_command_takes(
    page: str, command: str, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *words = read_words(command)
    assert name in COMMANDS, name
    if missing := [extra for part, extra in NEEDS.items() if part in command and find_spec(extra) is None]:
        pytest.skip(f"needs {missing}")
    if "--help" in words or not words:
        return
    if name in HYDRA_COMMANDS:
        require_composed(name, words, reader)
    else:
        require_parsed(name, words, monkeypatch)


def read_words(command: str) -> list[str]:
    """The words of a command line without what a sentence leaves to the reader."""
    plain = re.sub(r"\$\w+", "2", command.replace('"$@"', "..."))  # what a batch file is given, and its variables
    words = [word.replace("=...", "=photos") for word in shlex.split(plain, comments=True) if word != "..."]
    if words[0] == "export" and not any(word.startswith("ckpt=") for word in words):
        words.append("ckpt=best.ckpt")
    if words[0] == "train" and not any(word.startswith(("data", "resume", "experiment")) for word in words):
        words += ["data=imagefolder", "data.root=photos"]
    return [
        {"strategy=photos": "strategy=scratch", "experiment=NAME": "experiment=hotdog_resnet18"}.get(w, w)
        for w in words
    ]


def require_composed(name: str, words: list[str], reader: Path) -> None:
    """Compose the command, of a sweep its first point."""
    groups.register_models()
    if "--config-dir" in words:
        i = words.index("--config-dir")
        words[i : i + 2] = [f"hydra.searchpath=['file://{reader / words[i + 1]}']"]
    prepared = prepare_arguments(name, expand_recipes(words) if name == "train" else words)
    compose.compose_first_point(name, [word for word in prepared if word not in SWEEP_FLAGS])


class Parsed(Exception):
    """The command line was read."""


def require_parsed(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the command line and go no further."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        parse(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    module = importlib.import_module("finetune.models.__main__" if name == "models" else f"finetune.{name}")
    with pytest.raises(Parsed):
        getattr(module, "list_models" if name == "models" else name)(words)


def test_the_commands_of_every_page_are_found() -> None:
    pages = [page for page, _ in FOUND]
    assert pages.count("README.md") >= 5
    assert pages.count("getting_started.md") >= 8
    assert pages.count("sweeps.md") >= 8
    assert len(FOUND) >= 50
    assert commands_of("```\npython -m finetune.train a=1 \\\n    b=2\n```\nor `finetune check`") == [
        "train a=1      b=2",
        "check",
    ]
