"""Load, resume and start trainings from checkpoints of older formats, as the versions that had them wrote them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import FineTuner, load
from finetune.checkpoints.format import read_checkpoint
from finetune.checkpoints.metadata import FORMAT
from finetune.training.strategy import Strategy
from tests.helpers import TINY

STORED = Path(__file__).parents[1] / "checkpoints" / "stored"


FORMATS = [1, 2, 3]


CHOICES = [
    *TINY, "model=shufflenet_v2_x0_5", "optimizer.lr=0.1", "scheduler=cosine", "data.augment=none",
    "trainer.precision=32-true",
]  # fmt: skip
"""What the stored runs were started with."""


def stored(number: int) -> Path:
    return STORED / f"checkpoint_format{number}.ckpt"


@pytest.mark.parametrize("number", FORMATS)
def test_old_checkpoint_predicts_what_the_version_that_wrote_it_predicted(number: int) -> None:
    images = (np.arange(2 * 40 * 36 * 3) % 251).reshape(2, 40, 36, 3).astype(np.uint8)
    expected = json.loads((STORED / "checkpoint_formats.json").read_text())[f"format{number}"]
    found = load(stored(number), device="cpu", precision="32-true").probabilities(images)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_old_checkpoint_is_read_in_todays_form() -> None:
    checkpoint = read_checkpoint(stored(2))
    metadata = checkpoint.metadata
    assert (metadata.format, checkpoint.model.feature_boundary) == (FORMAT, "fc")
    assert metadata.weights_source == "random weights"
    assert metadata.validation.epoch == 2  # it was stored as 1, counted from 0
    assert metadata.validation.precision == "32-true"
    assert metadata.data.splits["val"].keys[0] == "val/cat/00.png"
    assert metadata.run is not None
    assert (metadata.run.max_epochs, metadata.run.start_epochs, metadata.run.processes) == (2, [0, None], 1)
    assert metadata.run.metric_state["acc"]["tp"].tolist() == [5]
    assert (*checkpoint.progress, checkpoint.is_resumable) == (2, 0, True)


def test_checkpoint_of_the_first_format_says_nothing_of_its_data() -> None:
    metadata = read_checkpoint(stored(1)).metadata
    assert metadata.data.splits == {}
    assert metadata.validation.epoch is None
    assert metadata.run is not None
    assert metadata.run.max_epochs == 2


@pytest.mark.parametrize("number", FORMATS)
def test_old_checkpoint_saved_again_has_todays_format(number: int, tmp_path: Path) -> None:
    FineTuner.load_from_checkpoint(stored(number)).save(tmp_path / "again.ckpt")
    entries = torch.load(tmp_path / "again.ckpt", weights_only=True)
    assert entries["finetune"]["format"] == FORMAT
    again, before = read_checkpoint(tmp_path / "again.ckpt"), read_checkpoint(stored(number))
    strategy = Strategy.load(before.model.strategy).to_dict()  # with the fields that strategies have now
    preprocess = {**(before.model.preprocess or {}), "fit": "crop", "depth": None}  # likewise
    assert again.model == replace(before.model, strategy=strategy, preprocess=preprocess)
    assert again.metadata.data == before.metadata.data


@pytest.mark.parametrize("number", FORMATS)
def test_old_checkpoint_resumes_and_its_epochs_are_counted_on(
    number: int, command: Callable[..., tuple[Path, int]], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    for name in ("last", "best"):
        shutil.copy(stored(number), tmp_path / "old" / f"{name}.ckpt")
    folder, code = command(
        "train", *CHOICES, f"data.root={photos}", f"ckpt_path={tmp_path}/old/last.ckpt", "trainer.max_epochs=3"
    )
    assert code == 0
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["train/loss"] for row in rows[:2]] == ["1.099293", "1.099945"]  # of the stored run
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt").metadata.validation.epoch == 3


@pytest.mark.parametrize("number", FORMATS)
def test_a_training_starts_from_an_old_checkpoint(
    number: int, command: Callable[..., tuple[Path, int]], photos: Path
) -> None:
    folder, code = command(
        "train", *CHOICES, f"data.root={photos}", f"model.weights={stored(number)}", "trainer.max_epochs=1"
    )
    assert code == 0
    assert "trunk tensors from" in json.loads((folder / "metrics.json").read_text())["weights"]
