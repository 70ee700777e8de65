"""Test `finetune.data.datamodule`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.transforms import v2

from finetune import FineTuner, ImageDataModule, Preprocess
from finetune.data import trainer_state
from finetune.runtime.seeding import derive_seed
from finetune.training.strategy import Strategy
from tests.data.helpers import SMALL_PREPROCESS, OwnDataset, make_data, split_sizes
from tests.helpers import COLOURS


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
        monkeypatch.setattr(trainer_state, "rank", lambda trainer, rank=rank: (rank, 5))
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
    assert data.final_preprocess == module.preprocess
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


def test_the_pixels_of_a_data_set_are_digested_once_for_a_fit() -> None:
    class Counted(OwnDataset):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            read.append(i)
            return super().__getitem__(i)

    read: list[int] = []
    data = ImageDataModule(dataset=Counted, splits={"train": {"count": 40}, "val": {}}).prepare()
    first, reads = data.fingerprint("train"), len(read)
    assert set(read) == set(range(40))
    assert data.fingerprint("train") == first
    assert len(read) == reads
    data.teardown()
    data.splits["train"].load.dataset.images[39] += 1  # type: ignore[attr-defined]
    assert data.fingerprint("train") != first


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


def test_a_second_network_gets_its_own_preprocessing(photos: Path, trainer: Callable[..., Trainer]) -> None:
    data = ImageDataModule(photos, batch_size=8, num_workers=0)
    for size, mean in ((32, 0.5), (48, 0.25)):
        module = FineTuner("squeezenet1_1", list(COLOURS), weights="none", preprocess={"size": size, "mean": mean})
        trainer(1).fit(module, datamodule=data)
        assert data.final_preprocess == module.preprocess
        assert data.sample(2)[0].shape == (2, 3, size, size)


def test_what_was_given_to_the_data_wins_over_what_the_network_needs(photos: Path) -> None:
    data = ImageDataModule(photos, image_size=64).prepare()
    network = Preprocess(size=32, resize=40, mean=(0.5, 0.5, 0.5))
    assert data.adapt_to(data.classes, network, 0) == replace(network, size=64, resize=80)
    given = ImageDataModule(photos, preprocess=SMALL_PREPROCESS).prepare()
    assert given.adapt_to(given.classes, network, 0) == SMALL_PREPROCESS


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "val")])
def test_predict_gives_probabilities_in_the_order_of_the_split(
    splits: tuple[str, ...], make_images: Callable[..., Path], trainer: Callable[..., Trainer]
) -> None:
    counts = {"train": 4, "val": 3, "test": 5}
    root = make_images({split: dict.fromkeys(COLOURS, counts[split]) for split in splits})
    module = FineTuner("resnet18", list(COLOURS), weights="none", preprocess={"size": 32, "resize": 32})
    data = ImageDataModule(root, batch_size=4, num_workers=0)
    probabilities = torch.cat(trainer(1).predict(module, datamodule=data))  # type: ignore[arg-type]
    assert data.splits[splits[-1]].keys == sorted(data.splits[splits[-1]].keys)
    module.eval()
    rows = []
    for path in sorted((root / splits[-1]).rglob("*.png")):  # 32 pixels, so that nothing is resized
        pixels = torch.from_numpy(np.array(Image.open(path)) / 255.0).permute(2, 0, 1).float()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.preprocess.mean, module.preprocess.std))
        with torch.no_grad():
            rows.append(module.backbone(((pixels - mean) / std)[None]).softmax(dim=1))
    assert torch.allclose(probabilities, torch.cat(rows), atol=1e-5)
    assert len(probabilities) == 3 * counts[splits[-1]]


# --- transforms of the user's own --------------------------------------------------------------------------------


def top_left(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[:, :16, :16]


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (Preprocess().mean, Preprocess().std))
    return (pixels[:, :16, :16] / 255 - mean) / std


def test_an_eval_transform_takes_the_place_of_resizing_in_every_split(photos: Path) -> None:
    data = make_data(photos, augment="none", eval_transform=top_left, batch_size=24)
    files = {name: [photos / key for key in split.keys] for name, split in data.splits.items()}
    for images, labels, name in ((*_epoch(data), "train"), (*next(iter(data.val_dataloader())), "val")):
        by_label = {
            c: {np.array(Image.open(p))[:16, :16].tobytes() for p in files[name] if p.parent.name == c} for c in COLOURS
        }
        for image, label in zip(images, labels, strict=True):
            assert image.permute(1, 2, 0).numpy().tobytes() in by_label[data.classes[int(label)]]


def test_a_train_transform_augments_every_epoch_and_evaluation_stays_as_it_is(photos: Path) -> None:
    data = make_data(photos, train_transform=v2.RandomCrop(16), batch_size=24)
    data.adapt_to(data.classes, SMALL_PREPROCESS, unaugmented_epochs=5)  # of a frozen trunk
    assert data.augments(0)
    image, label = data.image_dataset("train")[2, 7]
    pixels = data.splits["train"].load(7)
    torch.manual_seed(derive_seed(0, 2, 7))
    assert torch.equal(image, v2.RandomCrop(16)(pixels))
    assert label == data.splits["train"].labels[7]
    assert torch.equal(data.image_dataset("val")[1][0], SMALL_PREPROCESS.eval_transform()(data.splits["val"].load(1)))


@pytest.mark.parametrize("augment", ["auto", "light", "trivial"])
def test_a_split_in_order_is_not_augmented_but_for_its_views(augment: str, photos: Path) -> None:
    data = make_data(photos, augment=augment, batch_size=24)
    data.adapt_to(data.classes, SMALL_PREPROCESS, unaugmented_epochs=0)  # of a trunk that is trained at once
    split, plain = data.splits["train"], SMALL_PREPROCESS.eval_transform()
    expected = torch.stack([plain(split.load(i)) for i in range(len(split))])
    assert torch.equal(torch.cat(list(data.iterate_split("train"))), expected)
    assert torch.equal(data.first_image("train"), expected[:1])
    views = [data.image_dataset("train")[epoch, i][0] for epoch in (0, 1) for i in range(len(split))]
    assert torch.equal(torch.cat(list(data.iterate_split("train", views=2))), torch.stack(views))
    assert torch.equal(data.first_image("train", views=2), views[0][None])
    assert not torch.equal(torch.stack(views[: len(split)]), expected)


def noisy(pixels: torch.Tensor) -> torch.Tensor:
    noise = np.random.randint(0, 50, (3, 16, 16), np.uint8)
    return pixels[:, :16, :16] // 2 + torch.from_numpy(noise) + random.randrange(9)


def test_own_transforms_give_the_same_epoch_with_any_number_of_workers(photos: Path) -> None:
    one, two, other = (
        _epoch(make_data(photos, train_transform=noisy, num_workers=n, batch_size=6, seed=seed))
        for n, seed in ((0, 0), (2, 0), (0, 1))
    )
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0].sort(dim=0)[0], other[0].sort(dim=0)[0])


def darkened(pixels: torch.Tensor) -> torch.Tensor:
    pixels //= 2
    return pixels[:, :16, :16]


@pytest.mark.parametrize("argument", ["train_transform", "eval_transform"])
def test_a_transform_that_works_in_place_leaves_the_cached_pixels_alone(argument: str, photos: Path) -> None:
    data = make_data(photos, cache_images="ram", **{argument: darkened})
    data.cache_pixels(epochs=3)
    dataset = data.image_dataset("train" if argument == "train_transform" else "val")
    expected = np.array(Image.open(photos / dataset.split.keys[0]))[:16, :16] // 2
    for epoch in range(3):  # decoded, from the cache, and from it again
        assert np.array_equal(dataset[epoch, 0][0].permute(1, 2, 0).numpy(), expected)


def test_a_random_eval_transform_is_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match="eval_transform=RandomCrop gives other pixels each time"):
        next(iter(make_data(photos, eval_transform=v2.RandomCrop(16)).val_dataloader()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_result_of_a_transform_is_said_in_the_main_process(workers: int, photos: Path) -> None:
    data = make_data(photos, train_transform=v2.RandomHorizontalFlip(), num_workers=workers)
    with pytest.raises(ValueError, match=r"^train_transform=RandomHorizontalFlip returned torch.uint8 \(3, 32, 32\)"):
        _epoch(data)


def test_normalised_floats_are_not_normalised_again(
    photos: Path, trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(transform: Any, cache: str) -> FineTuner:
        torch.manual_seed(0)
        strategy = {**Strategy.load("feature_extract").to_dict(), "cache": cache}
        module = FineTuner("resnet18", list(COLOURS), strategy, weights="none", preprocess={"size": 16, "resize": 16})
        data = ImageDataModule(photos, num_workers=0, batch_size=8, eval_transform=transform, cache_dir=tmp_path)
        trainer(1).fit(module, datamodule=data)
        return module

    floats, pixels = fit(v2.Compose([v2.CenterCrop(16), *FLOATS]), "auto"), fit(v2.CenterCrop(16), "never")
    assert torch.allclose(floats.head.weight, pixels.head.weight, atol=1e-5)  # type: ignore[arg-type]
    printed = " ".join(capsys.readouterr().out.split())
    assert "computed in" in printed
    assert "evaluate, predict and export use the checkpoint's preprocessing, not eval_transform=Compose" in printed
    assert (
        make_data(photos, augment="none", eval_transform=normalised).sample(2)[0].dtype == torch.uint8
    )  # for a picture


FLOATS = (v2.ToDtype(torch.float32, scale=True), v2.Normalize(Preprocess().mean, Preprocess().std))


@pytest.mark.parametrize(
    ("options", "views", "said"),
    [
        ({"train_transform": v2.RandomCrop(16)}, 1, "train_transform=RandomCrop changes the pixels every epoch"),
        ({"train_transform": v2.RandomCrop(16)}, 2, "of 2 x 24 + 12 images"),
        ({"train_transform": top_left}, 2, "train_transform=top_left cannot be told from another one"),
        ({"eval_transform": top_left}, 1, "eval_transform=top_left cannot be told from another one"),
        ({"eval_transform": v2.CenterCrop(16)}, 1, "of 24 + 12 images"),
        ({"random_erasing": 0.5}, 1, "data.random_erasing is for epochs with augmentation"),
    ],
)
def test_features_are_kept_of_transforms_that_can_be_identified(
    options: dict[str, Any], views: int, said: str, photos: Path, trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    strategy = {**Strategy.load("feature_extract").to_dict(), "views": views}
    data = ImageDataModule(photos, batch_size=8, num_workers=0, cache_dir=tmp_path, **options)
    module = FineTuner("resnet18", list(COLOURS), strategy, weights="none", preprocess={"size": 16})
    trainer(1).fit(module, datamodule=data)
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_transform_with_other_arguments_finds_no_features_of_the_first(
    photos: Path, trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fit(transform: Any) -> str:
        module = FineTuner("resnet18", list(COLOURS), weights="none", preprocess={"size": 16})
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        data = ImageDataModule(photos, batch_size=8, num_workers=0, cache_dir=tmp_path, eval_transform=transform)
        trainer(1).fit(module, datamodule=data)
        return " ".join(capsys.readouterr().out.split())

    def invert(p: float) -> v2.Transform:
        return v2.Compose([v2.CenterCrop(16), v2.RandomInvert(p)])

    assert "computed in" in fit(invert(0.0))
    assert "taken from the cache" in fit(invert(0.0))
    assert "computed in" in fit(invert(1.0))
    assert len(list(tmp_path.glob("features-*"))) == 2 * 2  # entries of their own, not the first one's again


@pytest.mark.real
def test_hymenoptera_is_244_and_153_and_its_placeholder_is_named(shared: Path) -> None:
    data = ImageDataModule(shared / "data" / "hymenoptera_data", num_workers=0).prepare()
    assert split_sizes(data) == {"train": 244, "val": 153}
    assert data.classes == ["ants", "bees"]
    assert any("1 placeholder imageNotFound.gif" in note for note in data.notes)
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


class Balanced(ImageDataModule):
    """Sees the images of rare classes more often."""

    def training_order(self, epoch: int) -> list[int]:
        labels = torch.tensor(self.splits["train"].labels)
        weights = 1 / labels.bincount()[labels]
        generator = torch.Generator().manual_seed(epoch)
        return torch.multinomial(weights.float(), len(labels), replacement=True, generator=generator).tolist()


@pytest.mark.parametrize("cache", ["auto", "never"])
def test_a_sampler_of_ones_own_orders_images_and_features(
    cache: str, make_images: Callable[..., Path], trainer: Callable[..., Trainer]
) -> None:
    root = make_images({"train": {"cat": 9, "dog": 3}, "val": {"cat": 2, "dog": 2}})
    options = {"batch_size": 4, "num_workers": 0, "image_size": 32, "augment": "none"}
    seen: list[list[int]] = []

    class Watched(FineTuner):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append(batch[1].tolist())
            return super().training_step(batch, batch_idx)

    module = Watched("squeezenet1_1", ["cat", "dog"], weights="none")
    module.strategy.cache = cache
    data = Balanced(root, **options)  # type: ignore[arg-type]
    trainer(2).fit(module, datamodule=data)
    labels, expected = data.splits["train"].labels, []
    for epoch in range(2):
        weights = torch.tensor([1 / labels.count(label) for label in labels])
        order = torch.multinomial(weights, 12, replacement=True, generator=torch.Generator().manual_seed(epoch))
        expected += [[labels[i] for i in order[k : k + 4]] for k in (0, 4, 8)]
    assert seen == expected


@pytest.mark.parametrize(("order", "found"), [([0, 99], "0 to 99"), ([-1, 0], "-1 to 0"), ([], "none")])
def test_an_order_of_images_that_are_not_there_is_refused(
    order: list[int], found: str, photos: Path, trainer: Callable[..., Trainer]
) -> None:
    class Odd(ImageDataModule):
        def training_order(self, epoch: int) -> list[int]:
            return order

    with pytest.raises(ValueError, match=rf"gives the positions {found}; there are 24 training images"):
        trainer(1).fit(
            FineTuner("squeezenet1_1", ["cat", "dog", "emu"], weights="none"),
            datamodule=Odd(photos, num_workers=0, image_size=32),
        )


def test_an_order_that_changes_its_length_is_refused(
    make_images: Callable[..., Path], trainer: Callable[..., Trainer]
) -> None:
    class Growing(ImageDataModule):
        def training_order(self, epoch: int) -> list[int]:
            return list(range(4 + epoch))

    data = Growing(
        make_images({"train": {"cat": 4, "dog": 4}, "val": {"cat": 2, "dog": 2}}), num_workers=0, image_size=32
    )
    with pytest.raises(ValueError, match="The order of epoch 2 has 5 images, that of the first 4"):
        trainer(2).fit(FineTuner("squeezenet1_1", ["cat", "dog"], weights="none"), datamodule=data)
