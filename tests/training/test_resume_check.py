"""Test `finetune.training.resume_check`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule, Trainer

from finetune import FineTuner
from finetune.checkpoints.metadata import DataRecord, ModelRecord, SplitRecord
from finetune.models.specs import FAMILIES
from finetune.training.resume_check import _model_differences, check_resumable
from tests.helpers import CLASSES, SmallNetwork, make_batches

CONFIG: dict[str, Any] = {
    "trainer": {"max_epochs": 1},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01},
    "data": {"batch_size": 3},
}


VAL = SplitRecord(["a.png", "b.png", "c.png"], [0, 1, 2])


DATA = DataRecord(digest="then", splits={"val": VAL}, content="pixels of then")


def make_module(
    config: dict[str, Any], strategy: str = "finetune", classes: Sequence[str] = tuple(CLASSES)
) -> FineTuner:
    module = FineTuner(SmallNetwork(), classes, strategy, head="fc")
    module.metadata = replace(module.metadata, config=config)
    return module


class Data(LightningDataModule):
    """Batches of a stranger that say what they are."""

    def train_dataloader(self) -> Any:
        return make_batches(16)

    def record(self) -> DataRecord:
        return DATA


@pytest.fixture
def last(trainer: Callable[..., Trainer], tmp_path: Path) -> Path:
    """The checkpoint of a run of one epoch of two batches."""
    runner = trainer(1)
    runner.fit(make_module(CONFIG), datamodule=Data())
    runner.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_what_counts_of_what_changed_is_printed(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = {
        "trainer": {"max_epochs": 3},
        "optimizer": {**CONFIG["optimizer"], "lr": 0.5},
        "data": {"batch_size": 4, "num_workers": 2},
    }
    capsys.readouterr()
    check_resumable(last, make_module(changed), DATA)
    assert " ".join(capsys.readouterr().out.split()) == (
        "Note a resumed run goes on with what its checkpoint says: optimizer.lr stays 0.01. "
        "Note from here on data.batch_size=4 (was 3): not the run that it would have been. "
        f"Resumes in epoch 2, from {last}"
    )


def test_finished_run_has_nothing_left_to_train(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    check_resumable(last, make_module(CONFIG), DATA)
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"Resumes {last} has finished epoch 1 of 1: nothing is left to train")


def test_all_differences_are_named_at_once(last: Path) -> None:
    config = {**CONFIG, "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01}}
    module = make_module(config, "feature_extract", ["a", "b", "c"])
    data = DataRecord(digest="now", splits={"val": SplitRecord(["b.png", "c.png", "d.png", "e.png"], [0, 1, 2, 0])})
    with pytest.raises(ValueError, match="is of another run") as error:
        check_resumable(last, module, data)
    for part in (
        "its classes is ['cat', 'dog', 'emu'], this run's is ['a', 'b', 'c']",
        "its strategy is finetune, this run's is feature_extract",
        "of the val images 1 gone, a.png for one and 2 new, d.png for one",
        "its optimizer._target_ is torch.optim.SGD, this run's is torch.optim.AdamW",
    ):
        assert part in str(error.value)


def test_other_splits_and_other_training_images_are_other_data(last: Path) -> None:
    test = {"test": SplitRecord(["t.png"], [0])}
    for splits, message in (
        ({"val": VAL, **test}, "only one of the two has a test split"),
        ({"val": VAL}, "other training images or labels"),
    ):
        with pytest.raises(ValueError, match=message):
            check_resumable(last, make_module(CONFIG), DataRecord(digest="now", splits=splits))


def test_a_data_set_with_the_same_labels_and_other_pixels_is_other_data(last: Path) -> None:
    with pytest.raises(ValueError, match="its training images have other pixels"):
        check_resumable(last, make_module(CONFIG), replace(DATA, content="pixels of now"))
    check_resumable(last, make_module(CONFIG), replace(DATA, content=None))  # files, or an older checkpoint


def test_weights_alone_are_no_run_to_go_on_with(tmp_path: Path) -> None:
    module = make_module(CONFIG)
    module.save(tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"holds weights but not the state of a run; .* model\.weights="):
        check_resumable(tmp_path / "weights.ckpt", module, DATA)


def test_a_run_of_other_channels_or_of_another_size_of_a_transformer_is_refused() -> None:
    module = FineTuner("squeezenet1_1", CLASSES, weights="none", in_channels=1)
    grey = ModelRecord("squeezenet1_1", CLASSES, module.strategy.to_dict(), in_channels=1, preprocess={"size": 64})
    assert list(_model_differences(grey, module)) == []
    assert list(_model_differences(replace(grey, in_channels=3), module)) == ["its in_channels is 3, this run's is 1"]
    module.family = FAMILIES["vit_b_16"]  # whose networks are built for a size
    assert list(_model_differences(grey, module)) == ["its image size is 64, this run's is 224"]


def test_an_old_run_on_deep_grey_goes_on_with_all_of_16_bits() -> None:
    module = FineTuner("squeezenet1_1", CLASSES, weights="none", preprocess={"depth": [300, 2000]})
    old = ModelRecord("squeezenet1_1", CLASSES, module.strategy.to_dict(), preprocess={"size": 224})
    (difference,) = _model_differences(old, module)
    assert difference.endswith(
        "this run's is [300.0, 2000.0]: data.depth=[0,65535] goes on with it, if its images are integers"
    )
    module.preprocess = module.preprocess.updated({"depth": [0, 65535]})
    assert list(_model_differences(old, module)) == []
    newer = replace(old, preprocess={"size": 224, "depth": [300.0, 2000.5]})
    assert [text.split(": ")[-1] for text in _model_differences(newer, module)] == [
        "data.depth=[300,2000.5] goes on with it"
    ]
