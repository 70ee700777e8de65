"""Test `finetune.tracking.tracked_run`."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from finetune.tracking.tracked_run import IDS_FILE, TrackedRun, git_commit, keep_ids, read_ids
from tests.tracking.conftest import Train
from tests.tracking.helpers import free_port, make_tracked_run


def test_parameters_are_dotted_keys_without_what_says_where_it_writes() -> None:
    config = {
        "model": {"name": "resnet18", "options": {}, "weights": None},
        "data": {
            "classes": ["a", "ü"],
            "augment": {"transforms": [{"_target_": "x.Y", "p": 0.5}, {"_target_": "x.Z"}]},
        },
        "seed": 0,
        "report": True,
        "callbacks": {"mine": {"address": "http://me:secret@host"}},
        "logger": {"mlflow": {"tracking_uri": "http://me:secret@host"}},
        "sweep": {"storage": "mysql://me:secret@host/db"},
        "paths": {"cache_dir": "/home/me"},
    }
    assert TrackedRun(Path("a"), config, {}).parameters() == {
        "model.name": "resnet18",
        "model.options": "{}",
        "model.weights": None,
        "data.classes": '["a", "ü"]',
        "data.augment.transforms.0._target_": "x.Y",
        "data.augment.transforms.0.p": 0.5,
        "data.augment.transforms.1._target_": "x.Z",
        "seed": 0,
        "report": True,
        "callbacks.mine.address": "http://host",
    }


def test_an_empty_configuration_has_no_parameters() -> None:
    assert TrackedRun(Path("a"), {}, {}).parameters() == {}


@pytest.mark.parametrize(
    ("folder", "sweep", "name"),
    [
        ("/r/train/2026-01-01", None, "2026-01-01"),
        ("/r/sweeps/night/3", "/r/sweeps/night", "night/3"),
        ("/r/sweeps/night/seed=0/lr=1", "/r/sweeps/night", "night/seed=0/lr=1"),
        ("/elsewhere/3", "/r/sweeps/night", "night/3"),
    ],
)
def test_the_name_is_that_of_the_folder(folder: str, sweep: str | None, name: str) -> None:
    assert TrackedRun(Path(folder), {}, {}, Path(sweep) if sweep else None).name == name


def test_ids_are_kept_by_tracker_and_found_from_the_run_that_goes_on(tmp_path: Path) -> None:
    first = make_tracked_run(tmp_path / "a")
    assert first.find_ids("mlflow") is None
    first.keep_ids("mlflow", {"run_id": "1"})
    first.keep_ids("wandb", {"id": "x"})
    assert json.loads((tmp_path / "a" / IDS_FILE).read_text()) == {"mlflow": {"run_id": "1"}, "wandb": {"id": "x"}}
    resumed = make_tracked_run(tmp_path / "b", resumed=tmp_path / "a")
    assert resumed.find_ids("wandb") == {"id": "x"}
    resumed.keep_ids("wandb", {"id": "y"})
    assert resumed.find_ids("wandb") == {"id": "y"}
    assert resumed.find_ids("mlflow") == {"run_id": "1"}


def test_a_run_inherits_all_ids_of_the_one_that_it_goes_on_with(tmp_path: Path) -> None:
    first = make_tracked_run(tmp_path / "a")
    first.inherit_ids()
    assert not (tmp_path / "a" / IDS_FILE).exists()
    first.keep_ids("mlflow", {"run_id": "1"})
    first.keep_ids("wandb", {"id": "x"})
    resumed = make_tracked_run(tmp_path / "b", resumed=tmp_path / "a")
    resumed.keep_ids("wandb", {"id": "y"})
    resumed.inherit_ids()
    assert read_ids(tmp_path / "b") == {"mlflow": {"run_id": "1"}, "wandb": {"id": "y"}}


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff"])
def test_a_damaged_file_of_ids_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / IDS_FILE).write_bytes(content.encode(errors="surrogateescape"))
    assert read_ids(tmp_path) == {}
    keep_ids(tmp_path, "mlflow", {"run_id": "1"})
    assert read_ids(tmp_path) == {"mlflow": {"run_id": "1"}}


def test_the_commit_is_gits_and_says_when_files_were_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    assert git_commit(tmp_path) is None
    git("init", "-q")
    assert git_commit(tmp_path) is None
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-qm", "first")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD").strip()
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == f"{commit}-dirty"


@pytest.mark.slow
def test_a_password_is_in_no_file_of_a_run_but_hydras_own_record_from_which_it_is_resumed(
    train_run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("mlflow", "wandb", "tensorboard"):
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    address = f"http://me:hunter2@127.0.0.1:{free_port()}"
    words = [
        "logger=[mlflow,wandb,tensorboard]", f"logger.mlflow.tracking_uri={address}", "logger.wandb.offline=true",
        "logger.tensorboard.graph=false", "trainer.max_epochs=1",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train", *words])  # W&B reads it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folders = [
            train_run("first", *words),
            train_run("second", f"resume={tmp_path / 'first'}", "trainer.max_epochs=2"),
        ]
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".hydra"]
        names = {path.relative_to(folder).as_posix() for path in files}
        assert {"config.yaml", "metrics.json", "report.html", "checkpoints/best.ckpt", "tracking.json"} <= names
        assert any(path.suffix == ".wandb" for path in files)
        assert [path for path in files if b"hunter2" in path.read_bytes()] == []
        assert address in (folder / ".hydra" / "overrides.yaml").read_text()
        shown = address.replace("me:hunter2@", "")
        assert shown in (folder / "config.yaml").read_text()
    assert shown in json.loads((folders[0] / "metrics.json").read_text())["command"]
    said = capfd.readouterr()
    assert "hunter2" not in said.out + said.err
    assert "does not answer" in said.out
