"""Test `finetune.data.datamodule`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from finetune import FineTuner, ImageDataModule
from finetune.training.strategy import Strategy
from tests.data.helpers import OwnDataset, make_data, split_sizes


def _epoch(data: ImageDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(data.train_dataloader())
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


@pytest.mark.parametrize("augment", ["none", "trivial"])
def test_train_loader_gives_the_same_epoch_with_any_number_of_workers(augment: str, photos: Path) -> None:
    one, two = (_epoch(make_data(photos, augment=augment, num_workers=n, batch_size=5)) for n in (0, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    other = _epoch(make_data(photos, augment=augment, seed=1))
    assert not torch.equal(one[1], other[1])


def test_evaluation_loader_over_ranks_counts_each_image_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for rank in range(5):
        data = make_data(photos)
        monkeypatch.setattr(data, "_rank", lambda rank=rank: (rank, 5))
        seen += [int(label) for _, labels in data.val_dataloader() for label in labels]
    assert sorted(seen) == sorted(data.splits["val"].labels)


def test_class_weights_are_inverse_frequencies(make_images: Callable[..., Path]) -> None:
    data = make_data(make_images({"train": {"cat": 6, "dog": 2}, "val": {"cat": 1, "dog": 1}}))
    assert data.class_weights() == pytest.approx([8 / 12, 8 / 4])


def test_datamodule_takes_preprocessing_from_the_module_and_compares_classes(
    photos: Path, trainer: Callable[..., Trainer]
) -> None:
    data = ImageDataModule(photos, batch_size=8, num_workers=0)
    module = FineTuner("resnet18", ["cat", "dog", "emu"], weights="none", preprocess={"size": 32, "mean": 0.5})
    trainer(1).fit(module, datamodule=data)
    assert data.preprocess == module.preprocess
    with pytest.raises(ValueError, match=r"classes \['x', 'y', 'z'\], the data have"):
        trainer(1).fit(FineTuner("resnet18", ["x", "y", "z"], weights="none"), datamodule=ImageDataModule(photos))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "trivail"}, "no augmentation 'trivail'"),
        ({"on_bad_file": "ignore"}, "no data.on_bad_file 'ignore'"),
        ({"val_fraction": 1.5}, "between 0 and 1"),
        ({"batch_size": 0}, "1 or more"),
    ],
)
def test_datamodule_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule("x", **options)


def test_sample_is_what_the_first_batch_will_be(photos: Path) -> None:
    data = make_data(photos, augment="basic", batch_size=6)
    images, labels = data.sample(6)
    first = next(iter(data.train_dataloader()))
    assert torch.equal(images, first[0])
    assert labels == first[1].tolist()


def test_a_data_set_of_the_same_size_and_first_image_does_not_train_on_the_features_of_another(
    trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def head(seed: int, cache: str) -> torch.Tensor:
        torch.manual_seed(0)
        strategy = {**Strategy.load("feature_extract").to_dict(), "cache": cache}
        module = FineTuner("resnet18", ["dark", "light"], strategy, weights="none", preprocess={"size": 32})
        data = ImageDataModule(
            dataset=OwnDataset, splits={"train": {"seed": seed}, "val": {"seed": seed, "count": 4}},
            batch_size=4, num_workers=0, cache_dir=tmp_path / "cache",
        )  # fmt: skip
        trainer(2).fit(module, datamodule=data)
        return module.head.weight.detach().clone()  # type: ignore[operator]

    head(1, "auto")
    second = head(2, "auto")
    assert capsys.readouterr().out.count("computed in") == 2
    assert torch.allclose(second, head(2, "never"), atol=1e-5)
    assert torch.equal(second, head(2, "auto"))
    assert "taken from the cache" in " ".join(capsys.readouterr().out.split())


def test_a_data_set_that_changes_its_images_is_computed_in_every_step(
    trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    class Noisy(OwnDataset):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            return torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8).numpy(), self.targets[i]

    data = ImageDataModule(dataset=Noisy, splits={"train": {}, "val": {}}, batch_size=4, num_workers=0)
    module = FineTuner("squeezenet1_1", ["dark", "light"], weights="none", preprocess={"size": 32})
    trainer(1).fit(module, datamodule=data)
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"Features computed again in every step: \S*Noisy gives other pixels each time that image 0 is", printed
    )


@pytest.mark.real
def test_hymenoptera_is_244_and_153_and_its_placeholder_is_named(shared: Path) -> None:
    data = ImageDataModule(shared / "data" / "hymenoptera_data", num_workers=0).prepare()
    assert split_sizes(data) == {"train": 244, "val": 153}
    assert data.classes == ["ants", "bees"]
    assert any("1 .gif" in note for note in data.notes)
    assert not data.bad_files
