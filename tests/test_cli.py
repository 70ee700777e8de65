from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import TINY
from torch.utils.data import DataLoader

from finetune import load
from finetune.cli import errors, main, run_folder
from finetune.cli.arguments import quote_paths
from finetune.cli.run_folder import unique_dir
from finetune.models.specs import find_family


def run(*argv: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune.train", *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("data.root=my photos", 'data.root="my photos"'),
        ("data.root=a=b,c(d)[e]", 'data.root="a=b,c(d)[e]"'),
        ("model.weights=größe/猫.pth", 'model.weights="größe/猫.pth"'),
        ("ckpt_path=it's", 'ckpt_path="it\'s"'),
        ('data.root=say "a"', 'data.root="say \\"a\\""'),
        ("hydra.run.dir=out/x", 'hydra.run.dir="out/x"'),
        ("paths.data_dir=/d", 'paths.data_dir="/d"'),
        ("+data.root=x", '+data.root="x"'),
        ("ckpt_path=null", "ckpt_path=null"),
        ("data.root=", "data.root="),
        ('data.root="done"', 'data.root="done"'),
        ("hydra.run.dir=a/${now:%Y}", "hydra.run.dir=a/${now:%Y}"),
        ("model=resnet18", "model=resnet18"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("--help", "--help"),
    ],
)
def test_quote_paths(given: str, quoted: str) -> None:
    assert quote_paths([given]) == [quoted]


def test_quote_paths_expands_home_and_keeps_choices_of_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_paths(["data.root=~/photos"]) == ['data.root="/home/me/photos"']
    assert quote_paths(["-m", "data.root=a,b"]) == ["-m", "data.root=a,b"]
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert quote_paths(["-m", "data.root=a,b"]) == ["-m", 'data.root="a,b"']


def test_quote_paths_moves_flags_to_the_front() -> None:
    assert quote_paths(["a=1", "--config-dir", "x y", "b=2", "-m"]) == ["--config-dir", "x y", "-m", "a=1", "b=2"]


def test_quoted_paths_reach_the_configuration_as_typed(tmp_path: Path) -> None:
    typed = "weird =,()[]{} ü猫 'q' \"d\" back\\slash %"
    done = run(f"data.root={typed}", "data=imagefolder", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from omegaconf import OmegaConf

    (tmp_path / "c.yaml").write_text(done.stdout)
    assert OmegaConf.load(tmp_path / "c.yaml").data.root == typed


def test_unique_dir_never_gives_a_folder_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tmp_path)
    first = unique_dir(base, "now")
    assert unique_dir(base, "now") == first  # Hydra asks several times
    run_folder.STATE.folders.clear()
    assert unique_dir(base, "now") == f"{base}/now_1"


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
    for word in ("lists the 80 of them", "feature_extract", "max_epochs: 15", "data.root=my_photos", "early_stopping"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train", "check", "evaluate", "predict", "export"])
def test_help_of_every_command_says_what_its_keys_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"finetune.{name}").main(["--help"])
    printed = capsys.readouterr().out
    for word in {
        "train": ("# report.html and plots/", "feature_extract"),
        "check": ("# check.html", "phash_threshold: 6"),
        "evaluate": ("# val | test", "none | flip | five_crop", "ckpt=best.ckpt data.root=other_photos", "data:"),
        "predict": ("# csv | jsonl | parquet", "embeddings: false", "source: ???"),
        "export": ("onnx | torch_export | safetensors | state_dict", "tolerance: 0.0001"),
    }[name]:
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 80 or name == "train"


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


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in run("model=resnet19", cwd=tmp_path, FINETUNE_DEBUG="1").stderr


def test_is_user_error_is_about_who_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal") as bug:
        int("x")
    assert not errors.is_user_error(bug.value)
    with pytest.raises(ValueError, match="no model") as mistake:
        find_family("x")
    assert errors.is_user_error(mistake.value)


@pytest.mark.parametrize("happens", [EOFError(), ConnectionResetError(104, "reset"), FileNotFoundError(2, "no socket")])
def test_a_worker_that_died_while_it_handed_over_a_batch_is_told(
    happens: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*args: object, **kwargs: object) -> object:
        raise happens

    iterator: Any = iter(DataLoader(cast(Any, [0, 1]), num_workers=1))
    monkeypatch.setattr(iterator._data_queue, "get", get)
    with pytest.raises(type(happens)) as error:
        next(iterator)
    assert errors.is_user_error(error.value)
    assert "a process that decodes images has died" in errors.explain(error.value, "train")
    assert not errors.is_user_error(happens.with_traceback(None))
    iterator._shutdown_workers()


def test_console_names_the_nearest_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", "trian"])
    with pytest.raises(SystemExit) as stop:
        main.console_script()
    assert stop.value.code == 2
    assert "no command 'trian'. The nearest are train" in capsys.readouterr().err


def test_console_runs_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", "models", "resnet18"])
    main.console_script()
    assert "11.7 M" in capsys.readouterr().out


def test_console_help_lists_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", "--help"])
    with pytest.raises(SystemExit) as stop:
        main.console_script()
    assert stop.value.code == 0
    assert "check, train, evaluate, predict, export, report, models, compare, cache, demo" in capsys.readouterr().out
