"""Test `finetune.cli.help`."""

from __future__ import annotations

import importlib

import pytest


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
    assert max(map(len, printed.splitlines())) <= 80 or name == "train"
