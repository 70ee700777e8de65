"""Test `finetune.tracking.tracked_run`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from finetune.tracking.tracked_run import IDS_FILE, TrackedRun, git_commit, keep_ids, read_ids
from tests.tracking.helpers import make_tracked_run


def test_parameters_are_dotted_keys_without_the_loggers() -> None:
    config = {
        "model": {"name": "resnet18", "options": {}, "weights": None},
        "data": {
            "classes": ["a", "ü"],
            "augment": {"transforms": [{"_target_": "x.Y", "p": 0.5}, {"_target_": "x.Z"}]},
        },
        "seed": 0,
        "report": True,
        "logger": {"mlflow": {"tracking_uri": "http://me:secret@host"}},
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
