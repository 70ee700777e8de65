"""Test `finetune.data.datamodule`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from finetune import FineTuner, ImageDataModule, Preprocess
from tests.data.helpers import make_data, split_sizes


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


@pytest.mark.real
def test_hymenoptera_is_244_and_153_and_its_placeholder_is_named(shared: Path) -> None:
    data = ImageDataModule(shared / "data" / "hymenoptera_data", num_workers=0).prepare()
    assert split_sizes(data) == {"train": 244, "val": 153}
    assert data.classes == ["ants", "bees"]
    assert any("1 .gif" in note for note in data.notes)
    assert not data.bad_files


# --- channels ----------------------------------------------------------------------------------------------------


def _mean_values(data: ImageDataModule, name: str) -> list[torch.Tensor]:
    """The mean of each channel of each image of a split, in order."""
    batches = data.val_dataloader() if name == "val" else data._loader(name, [[0]])
    return [image.double().mean(dim=(1, 2)) for images, _ in batches for image in images]


def test_images_for_one_channel_are_grey(photos: Path) -> None:
    data = make_data(photos, preprocess=Preprocess(size=32, resize=32).with_channels(1))
    images, _ = next(iter(data.val_dataloader()))
    with Image.open(data.splits["val"].load.paths[0]) as image:  # type: ignore[index]
        expected = np.asarray(image.convert("L"))
    assert images.shape[1:] == (1, 32, 32)
    assert np.array_equal(images[0, 0].numpy(), expected)


def read_tiff(path: str) -> torch.Tensor:
    """A loader for files of 16 bits, and for those of several bands."""
    with Image.open(path) as image:
        values = np.asarray(image)
    if values.dtype == np.uint16:
        return torch.from_numpy(values.astype(np.float32) / 65535).unsqueeze(0)
    return torch.from_numpy(values.copy()).permute(2, 0, 1)


def _write_tiffs(root: Path, bands: int) -> Path:
    """Two classes of six images, of one 16-bit band or of four bands of bytes: value n, 2n, 3n, 4n of a band."""
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(6):
            n = 10 * i + (5 if label == "b" else 0)
            if bands == 1:
                Image.fromarray(np.full((8, 8), 300 * n + 1, np.uint16)).save(root / label / f"{i}.tif")
            else:
                pixels = np.stack([np.full((8, 8), n * k, np.uint8) for k in (1, 2, 3, 4)], axis=-1)
                Image.fromarray(pixels, mode="CMYK").save(root / label / f"{i}.tif")
    return root


def test_loader_keeps_sixteen_bits(tmp_path: Path) -> None:
    preprocess = Preprocess(size=8, resize=8, mean=(0.25,), std=(0.5,))
    data = make_data(_write_tiffs(tmp_path, 1), preprocess=preprocess, loader=read_tiff)
    split = data.splits["val"]
    for key, found in zip(split.keys, _mean_values(data, "val"), strict=True):
        label, i = key[0], int(key[2])
        value = 300 * (10 * i + (5 if label == "b" else 0)) + 1  # in 8 bits it would lose its last digits
        assert float(found) == pytest.approx((value / 65535 - 0.25) / 0.5, abs=1e-6)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_loader_reads_four_bands_and_a_network_trains_on_them(
    tmp_path: Path, trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    data = ImageDataModule(
        _write_tiffs(tmp_path, 4), loader=read_tiff, batch_size=4, num_workers=0, image_size=32, cache_images="ram"
    ).prepare()
    preprocess = {"size": 32, "mean": [0.1, 0.2, 0.3, 0.4], "std": 0.5}
    module = FineTuner("squeezenet1_1", data.classes, weights="none", in_channels=4, preprocess=preprocess)
    trainer(1).fit(module, datamodule=data)
    split = data.splits["val"]
    for key, found in zip(split.keys, _mean_values(data, "val"), strict=True):
        n = 10 * int(key[2]) + (5 if key[0] == "b" else 0)
        assert found.tolist() == [n, 2 * n, 3 * n, 4 * n]
    assert data.cache_pixels(5) == "read again in every epoch, by the loader"
    assert data.record().loader == "read_tiff"
    images, _ = next(iter(data.val_dataloader()))
    with torch.no_grad():
        normalised = (images / 255 - torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1)) / 0.5
        assert torch.allclose(module.eval()(images), module.backbone(normalised), atol=1e-4)


def test_loader_reads_files_that_are_no_images_where_a_table_names_them(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.full((5, 8, 8), i, np.uint8))
        rows.append(f"{i}.npy,{'ab'[i % 2]},{'val' if i > 3 else 'train'}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    preprocess = Preprocess(size=8, resize=8).with_channels(5)
    data = make_data(tmp_path / "table.csv", preprocess=preprocess, loader=lambda path: torch.from_numpy(np.load(path)))
    assert not data.bad_files
    images, _ = next(iter(data.val_dataloader()))
    assert [image.unique().tolist() for image in images] == [[4], [5], [6], [7]]
    assert images.shape == (4, 5, 8, 8)
    (tmp_path / "3.npy").unlink()
    data = make_data(tmp_path / "table.csv", preprocess=preprocess, loader=lambda path: torch.from_numpy(np.load(path)))
    assert list(data.bad_files) == [str(tmp_path / "3.npy")]


def test_other_channels_need_a_loader(photos: Path, trainer: Callable[..., Trainer]) -> None:
    four = Preprocess(size=32, resize=32).with_channels(4)
    with pytest.raises(ValueError, match=r"takes images of 4 channels, .*ImageDataModule\(root, loader="):
        ImageDataModule(photos, preprocess=four)
    module = FineTuner("squeezenet1_1", ["cat", "dog", "emu"], weights="none", in_channels=4)
    with pytest.raises(ValueError, match=r"takes images of 4 channels, .*ImageDataModule\(root, loader="):
        trainer(1).fit(module, datamodule=ImageDataModule(photos, num_workers=0))
    with pytest.raises(ValueError, match="loader= reads files, and dataset="):
        ImageDataModule(dataset=list, loader=read_tiff)


def test_a_loader_of_other_channels_than_the_networks_is_refused(
    tmp_path: Path, trainer: Callable[..., Trainer]
) -> None:
    data = ImageDataModule(_write_tiffs(tmp_path, 1), loader=read_tiff, num_workers=0, image_size=32)
    module = FineTuner("squeezenet1_1", ["a", "b"], weights="none", preprocess={"size": 32})
    with pytest.raises(ValueError, match=r"images have 1 channel, and the network takes 3 \(in_channels\)"):
        trainer(1).fit(module, datamodule=data)
