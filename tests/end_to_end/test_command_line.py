"""Run commands in a process of their own: arguments, help, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import load
from tests.helpers import TINY


def run(*argv: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune.train", *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})


def test_quoted_paths_reach_the_configuration_as_typed(tmp_path: Path) -> None:
    typed = "weird =,()[]{} ü猫 'q' \"d\" back\\slash %"
    done = run(f"data.root={typed}", "data=imagefolder", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from omegaconf import OmegaConf

    (tmp_path / "c.yaml").write_text(done.stdout)
    assert OmegaConf.load(tmp_path / "c.yaml").data.root == typed


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["model=resnet19"], ["no model 'resnet19'", "resnet18", "python -m finetune.models"]),
        (["modle=resnet18"], ["no key 'modle'", "model"]),
        (["optimizer.lr=-1", "data.batch_size=0"], ["optimizer.lr must be", "data.batch_size must be"]),
        (["data=imagefolder"], ["data.root is missing"]),
        (["optimizer.lr=[1"], ["cannot be read as key=value"]),
    ],
)
def test_train_user_errors_are_one_paragraph_and_exit_2(argv: list[str], parts: list[str], tmp_path: Path) -> None:
    done = run(*argv, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stdout == ""


def test_train_help_lists_groups_and_keys(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("lists the 80 of them", "feature_extract", "max_epochs: 6", "data.root=my_photos", "early_stopping"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_train_help_takes_what_the_command_takes(tmp_path: Path) -> None:
    (tmp_path / "mine" / "strategy").mkdir(parents=True)
    (tmp_path / "mine" / "strategy" / "top.yaml").write_text('groups: [{match: "@head"}, {match: ".*", start: null}]\n')
    done = run("--config-dir", "mine", "strategy=top", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "start: null" in done.stdout
    assert run("-m", "optimizer.lr=1e-3,1e-2", "--help", cwd=tmp_path).returncode == 0


def test_user_configs_by_config_dir(tmp_path: Path) -> None:
    (tmp_path / "mine" / "strategy").mkdir(parents=True)
    (tmp_path / "mine" / "strategy" / "top.yaml").write_text('groups: [{match: "@head"}, {match: ".*", start: null}]\n')
    done = run("--config-dir", "mine", "strategy=top", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "start: null" in done.stdout


@pytest.mark.parametrize("defaults", ["", "defaults: [_base, _self_]\n"], ids=["alone", "on top of _base"])
def test_a_strategy_of_a_users_own_is_trained(
    defaults: str, command: Callable[..., tuple[Path, int]], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "strategy").mkdir(parents=True)
    groups = 'groups: [{match: "@head", name: top}, {match: ".*", start: null}]\n'
    (tmp_path / "mine" / "strategy" / "top.yaml").write_text(f"{defaults}{groups}")
    words = ("--config-dir", "mine", "strategy=top", f"data.root={photos}", "trainer.max_epochs=1")
    folder, code = command("train", *TINY, *words)
    assert code == 0
    strategy = load(folder / "checkpoints" / "best.ckpt").module.strategy
    assert (strategy.name, strategy.groups[0].name, strategy.cache, strategy.views) == ("top", "top", "auto", 1)


def test_keys_with_dashes_are_taken_as_the_agent_of_wandb_sends_them(tmp_path: Path) -> None:
    done = run("--optimizer.lr=0.25", "--model=resnet34", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lr: 0.25" in done.stdout
    assert "name: resnet34" in done.stdout
    done = run("--optimizer.lrr=0.25", cwd=tmp_path)
    assert done.returncode == 2
    assert "no key 'optimizer.lrr'. Did you mean optimizer.lr" in done.stderr


@pytest.mark.parametrize("words", [("--info", "defaults"), ("--info=defaults",), ("-i", "defaults")])
def test_info_is_shown_as_plain_hydra_shows_it(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*words, "model=resnet34", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Defaults List" in done.stdout
    assert "| model/resnet34 " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in run("model=resnet19", cwd=tmp_path, FINETUNE_DEBUG="1").stderr


@pytest.mark.slow
def test_the_time_of_a_run_counts_from_the_start_of_its_process(photos: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(*TINY, f"data.root={photos}", "hydra.run.dir=out", cwd=tmp_path)
    wall = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    seconds = json.loads((tmp_path / "out" / "metrics.json").read_text())["seconds"]
    # all but the start of Python, and what comes after the numbers were written; importing torch takes seconds
    assert 0.6 * wall < seconds["total"] < wall
    assert seconds["start"] > seconds["data"] + seconds["network"]


def test_wrong_words_are_answered_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from finetune import train; train.main(['modle=x', 'data.batch_size=0', '+trainer.max_epoch=1', "
        "'data.class_depth=leafs', 'data.fold=3', 'hydra.run.dir=r'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 6
    assert "5 things are wrong" in done.stderr
    assert list(tmp_path.iterdir()) == []  # a folder would block the next try
    assert "Traceback" not in done.stderr
