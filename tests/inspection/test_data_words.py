"""Test `finetune.inspection.data_words`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from finetune import ImageDataModule
from finetune.cli import arguments, compose, factories
from finetune.inspection.data_words import data_words


def test_of_default_options_only_the_root_is_named(tmp_path: Path) -> None:
    assert data_words(ImageDataModule(tmp_path)) == [f"data.root={tmp_path}"]
    assert data_words(ImageDataModule()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "inside_out", "class_depth": "leaf", "val_fraction": 0.35, "split_seed": 3},
        {"class_depth": 2, "folds": 4, "fold": 1, "classes": ["ants", "b, c", "null", "it's", "12"], "per_class": 7},
        {"columns": {"path": "file, or 'name'", "label": "breed", "split": None, "group": "end\\\\"}, "val": "test"},
        {"images": "my photos, all={1}", "group": r"""(patient\d+)_[a-z]{2,3}'"\.""", "on_bad_file": "error"},
        {"group": "patient_id", "columns": {"label": "true", "path": "Bild: Pfad"}},
        {"group": "'quoted'\\\\"},
    ],
)
def test_a_shell_and_hydra_read_the_words_as_the_options_that_they_were_made_of(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("photos = all, (1)")
    root.mkdir()
    data = ImageDataModule(root, **options)
    words = shlex.split(shlex.join(data_words(data)))
    read = factories.make_checked_data(compose.compose("check", arguments.quote_paths(words)))
    assert (read.root, read.reading, read.splitting) == (root, data.reading, data.splitting)
