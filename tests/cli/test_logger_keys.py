"""Test `finetune.cli.logger_keys`."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from finetune.cli import logger_keys
from finetune.cli.arguments import prepare_arguments
from finetune.cli.logger_keys import expand_logger_keys, find_missing_extras, logger_specs
from finetune.io import paths
from tests.helpers import faults_of


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("logger=mlflow logger.tracking_uri=http://a:1/b", "logger=mlflow logger.mlflow.tracking_uri=http://a:1/b"),
        ("logger.tracking_uri=x logger=[csv,mlflow]", "logger.mlflow.tracking_uri=x logger=[csv,mlflow]"),
        ("logger=[mlflow,wandb] logger.project=p", "logger=[mlflow,wandb] logger.wandb.project=p"),
        ("logger=[mlflow,wandb] logger.wandb.save_dir=p", "logger=[mlflow,wandb] logger.wandb.save_dir=p"),
        ("logger=wandb +logger.notes=a=b", "logger=wandb +logger.wandb.notes=a=b"),
        ("logger=wandb +logger.wandb.notes=a", "logger=wandb +logger.wandb.notes=a"),
        ("logger=tensorboard logger.save_dir=a,b", "logger=tensorboard logger.tensorboard.save_dir=a,b"),
        ("--config-dir=own logger=mine logger.anything=1", "--config-dir=own logger=mine logger.anything=1"),
        ("experiment=own logger.project=1", "experiment=own logger.project=1"),
        ("model=resnet18 seed=1", "model=resnet18 seed=1"),
    ],
)
def test_a_key_goes_to_the_logger_that_has_it(words: str, expected: str) -> None:
    assert expand_logger_keys(words.split()) == expected.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "logger.tracking_uri=x",
            r"logger\.tracking_uri: logger=csv has no such key\. It is a key of logger=mlflow\.$",
        ),
        (
            "logger=mlflow logger.tracking_ur=x",
            r"logger=mlflow has no such key\. Did you mean logger\.mlflow\.tracking_uri\?",
        ),
        (
            "logger=mlflow logger.mlflow.trackin_uri=x",
            r"Did you mean logger\.mlflow\.tracking_uri\? It takes logger\.mlflow\.exp",
        ),
        (
            "logger=[mlflow,wandb] logger.save_dir=x",
            r"several loggers take it; give logger\.mlflow\.save_dir= or logger\.wandb",
        ),
        (
            "logger=mlflow logger.wandb.project=x",
            r"logger\.wandb\.project: wandb is not chosen; give logger=wandb, or logger=\[",
        ),
        ("logger=[mlflow,wandb] +logger.x=1", r"several loggers take it"),
    ],
)
def test_a_key_that_no_logger_has_or_several_have_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_logger_keys(words.split())


def test_arguments_of_a_training_are_expanded_and_compose() -> None:
    words = prepare_arguments("train", ["logger=[csv,mlflow]", "logger.save_dir=my runs", "data.root=."])
    assert words == ["logger=[csv,mlflow]", 'logger.mlflow.save_dir="my runs"', 'data.root="."']
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    assert faults_of("train", *words, "data=imagefolder") == []


def test_loggers_of_ours_and_of_the_user_are_told_apart() -> None:
    node = OmegaConf.create(
        {
            "csv": None,
            "mlflow": {"_target_": "a.B", "save_dir": "x"},
            "_target_": "c.D",
            "version": 1,
            "other": {"_target_": "e.F"},
        }
    )
    assert logger_specs(node) == {
        "mlflow": {"_target_": "a.B", "save_dir": "x"},
        "other": {"_target_": "e.F"},
        "D": {"_target_": "c.D", "version": 1},
    }


@pytest.mark.parametrize("node", [None, {}, {"csv": None}, {"_target_": None}])  # the last is of runs before
def test_no_logger_is_none(node: Any) -> None:
    assert logger_specs(None if node is None else OmegaConf.create(node)) == {}


@pytest.mark.parametrize(("name", "package"), [(n, p) for n, ps in logger_keys.EXTRAS.items() for p in ps])
def test_a_missing_package_names_its_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger_keys, "find_spec", lambda searched: None if searched == package else object())
    (text,) = find_missing_extras(OmegaConf.create({"logger": {name: {"save_dir": "x"}}}))
    assert f"logger={name} needs a package that is not installed, {package}" in text
    assert text.endswith(f"pip install 'finetune-lightning[{name}]'.")
    assert faults_of("train", f"logger={name}", "data=imagefolder", "data.root=.") == [text]
    assert not list(find_missing_extras(OmegaConf.create({"logger": {"csv": None}})))


def test_extras_are_the_files_of_the_group() -> None:
    assert {path.stem for path in (paths.CONF / "logger").glob("*.yaml")} == {"csv", *logger_keys.EXTRAS}
