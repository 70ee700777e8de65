"""Test `finetune.io.paths`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.io import paths


def test_conf_holds_the_files_of_the_commands() -> None:
    assert {"train", "evaluate", "predict", "export", "check"} <= {path.stem for path in paths.CONF.glob("*.yaml")}


@pytest.mark.parametrize("word", ["default", "none", "IMAGENET1K_V2"])
def test_weights_path_of_a_word_is_none(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / word).touch()  # a file that happens to have that name does not count
    assert paths.weights_path(word) is None


def test_weights_path_of_a_file_is_found_from_home_and_missed_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.safetensors").touch()
    assert paths.weights_path("~/w.safetensors") == tmp_path / "w.safetensors"
    monkeypatch.chdir(tmp_path)
    for missing in ("other.pth", "sub/file"):
        with pytest.raises(FileNotFoundError, match=f"model.weights={missing}: there is no such file .looked in "):
            paths.weights_path(missing)


def test_a_run_folder_stands_for_its_best_checkpoint_and_resumes_from_its_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"a folder, without checkpoints/best\.ckpt"):
        paths.checkpoint_path(run)
    with pytest.raises(FileNotFoundError, match=r"a folder without checkpoints/last\.ckpt"):
        paths.last_checkpoint_path(str(run))
    for name in ("best", "last"):
        (run / "checkpoints" / f"{name}.ckpt").touch()
    assert paths.checkpoint_path(str(run)) == run / "checkpoints" / "best.ckpt"
    assert paths.last_checkpoint_path(str(run)) == run / "checkpoints" / "last.ckpt"
    for find in (paths.checkpoint_path, paths.last_checkpoint_path):
        assert find(str(run / "checkpoints" / "last.ckpt")) == run / "checkpoints" / "last.ckpt"
        with pytest.raises(FileNotFoundError, match=r"none\.ckpt: there is no such file"):
            find(str(run / "none.ckpt"))


@pytest.mark.parametrize(
    ("key", "is_path"),
    [
        ("data.root", True), ("+data.root", True), ("ckpt_path", True), ("model.weights", True), ("hydra.run.dir", True),
        ("paths.cache_dir", True), ("copy_to", True), ("data.roots", False), ("optimizer.lr", False), ("model", False),
    ],
)  # fmt: skip
def test_keys_whose_values_are_paths(key: str, is_path: bool) -> None:
    assert bool(paths.PATH_KEY.fullmatch(key)) == is_path
