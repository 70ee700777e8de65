"""Test `finetune.cli.help`."""

from __future__ import annotations

import importlib

import pytest

from finetune.cli import help


@pytest.mark.parametrize("name", ["train", "check", "evaluate", "predict", "export", "rank"])
def test_help_of_every_command_says_what_its_keys_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"finetune.{name}").main(["--help"])
    printed = capsys.readouterr().out
    for word in {
        "train": ("# report.html and plots/", "feature_extract", "data/augment: augmix, auto"),
        "check": ("# check.html", "phash_threshold: 6"),
        "rank": ("# of the cross-validation", "models: null", "data.root=my_photos"),
        "evaluate": ("# val | test", "none | flip | five_crop", "ckpt=best.ckpt data.root=other_photos", "data:"),
        "predict": ("# csv | jsonl | parquet", "embeddings: false", "source: ???"),
        "export": ("onnx | torch_export | safetensors | state_dict", "tolerance: 0.0001"),
    }[name]:
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_help_of_train_begins_with_the_keys_that_everybody_needs(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("finetune.train").main(["--help", "strategy=gradual"])
    printed = capsys.readouterr().out
    first = printed.split("== The keys that everybody needs ==\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in first.splitlines() if line[0] != " "] == list(help.FIRST_KEYS["train"])
    assert len(help.FIRST_KEYS["train"]) == 10
    assert printed.index("everybody needs") < printed.index("== Groups") < printed.index("== Keys")
    for nested in (
        "  # share of train held out, by class",
        "  mixup: 0  # alpha of MixUp",
        "  devices: 1  # number of",
    ):
        assert nested in printed


def test_help_of_predict_names_no_groups_for_it_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("finetune.predict").main(["--help"])
    assert "== Groups" not in capsys.readouterr().out
