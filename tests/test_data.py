from __future__ import annotations

import builtins
import csv
import io
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torchvision import datasets

from finetune import FineTuner, ImageDataModule, Preprocess
from finetune.data.loaders import BalancedBatchSampler, EpochSampler, SwitchableLoader
from finetune.runtime.seeding import derive_seed

SMALL = Preprocess(size=16, resize=16)


def data_of(root: Any, **options: Any) -> ImageDataModule:
    return ImageDataModule(root, **{"num_workers": 0, "preprocess": SMALL, **options}).prepare()


def sizes(data: ImageDataModule) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


# --- folders -----------------------------------------------------------------------------------------------------


def test_folder_with_split_names_as_others_write_them(make_images: Callable[..., Path]) -> None:
    data = data_of(make_images({"Training": {"cat": 5, "dog": 5}, "Testing": {"cat": 1, "dog": 1}}))
    assert sizes(data) == {"train": 8, "val": 2, "test": 2}


def test_folder_with_a_split_but_no_train_is_an_error(make_images: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="has test but no train folder"):
        data_of(make_images({"test": {"cat": 5, "dog": 5}, "": {"emu": 3}}))


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder_with_splits(val: str, make_images: Callable[..., Path]) -> None:
    data = data_of(make_images({"train": {"cat": 3, "dog": 2}, val: {"cat": 1, "dog": 2}, "test": {"dog": 1}}))
    assert data.classes == ["cat", "dog"]
    assert sizes(data) == {"train": 5, "val": 3, "test": 1}
    assert data.splits["val"].keys == [f"{val}/cat/00.png", f"{val}/dog/00.png", f"{val}/dog/01.png"]
    assert data.splits["test"].labels == [1]
    assert any("test split has no images of cat" in note for note in data.notes)


@pytest.mark.parametrize("layout", ["train", ""])
def test_folder_without_val_is_split_by_class_and_seed(layout: str, make_images: Callable[..., Path]) -> None:
    root = make_images({layout: {"cat": 10, "dog": 20, "emu": 5}})
    data = data_of(root)
    assert data.splits["val"].counts(data.classes) == {"cat": 2, "dog": 4, "emu": 1}
    assert data.splits["train"].counts(data.classes) == {"cat": 8, "dog": 16, "emu": 4}
    assert not set(data.splits["val"].keys) & set(data.splits["train"].keys)
    assert data_of(root, seed=7).splits["val"].keys == data.splits["val"].keys
    assert data_of(root, split_seed=1).splits["val"].keys != data.splits["val"].keys
    assert any("held out" in note for note in data.notes)


def test_folder_with_test_but_no_val_holds_out_of_train(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 10, "dog": 10}, "test": {"cat": 3, "dog": 3}})
    assert sizes(data_of(root)) == {"train": 16, "val": 4, "test": 6}
    assert sizes(data_of(root, val="test")) == {"train": 20, "val": 6}


def test_split_keeps_exact_duplicates_on_one_side(make_images: Callable[..., Path]) -> None:
    root = make_images({"": {"cat": 10, "dog": 10}})
    for i in range(10):
        (root / "cat" / f"copy{i:02d}.png").write_bytes((root / "cat" / f"{i:02d}.png").read_bytes())
    data = data_of(root, val_fraction=0.4)

    def contents(split: str) -> set[bytes]:
        return {(root / key).read_bytes() for key in data.splits[split].keys}

    assert data.splits["val"].counts(data.classes)["cat"] == 8
    assert not contents("train") & contents("val")


def test_split_of_too_few_images_is_an_error(make_images: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"2 training images are too few.*val_fraction"):
        data_of(make_images({"": {"cat": 1, "dog": 1}}))


def test_val_classes_are_mapped_by_name(make_images: Callable[..., Path]) -> None:
    data = data_of(make_images({"train": {"cat": 2, "dog": 2, "emu": 2}, "val": {"cat": 1, "emu": 1}}))
    assert data.splits["val"].labels == [0, 2]  # ImageFolder alone would call the emu 1, a dog


def test_val_class_that_train_lacks_is_an_error(make_images: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"val split has classes that train lacks: yak\. Train has cat, dog"):
        data_of(make_images({"train": {"cat": 2, "dog": 2}, "val": {"cat": 1, "yak": 1}}))


def test_classes_and_per_class_keep_a_part(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 5, "dog": 5, "emu": 5}, "val": {"cat": 2, "dog": 2, "emu": 2}})
    data = data_of(root, classes=["emu", "cat"], per_class=3)
    assert data.classes == ["cat", "emu"]
    assert data.splits["train"].counts(data.classes) == {"cat": 3, "emu": 3}
    assert data.splits["val"].counts(data.classes) == {"cat": 2, "emu": 2}
    with pytest.raises(ValueError, match=r"class in data\.classes: 'cta'.*cat"):
        data_of(root, classes=["cta", "dog"])


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"": {"cat": 3}}, r"has 1 class: \['cat'\].*two or more"),
        ({"train": {"cat": 3, "dog": 0}}, r"no images in dog"),
        ({"val": {"cat": 3, "dog": 3}, "train": {}}, r"train has no folders"),
    ],
)
def test_folder_errors_say_what_is_wrong(
    splits: Any, message: str, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images(splits)
    (root / "train").mkdir(exist_ok=True) if "train" in splits else None
    with pytest.raises(ValueError, match=message):
        data_of(root)


def test_folder_of_loose_files_and_missing_folder_are_errors(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"has no folders in it \(1 images lie loose there\)"):
        data_of(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere: there is no such folder"):
        data_of(tmp_path / "nowhere")


def test_bad_files_are_left_out_and_listed(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 3, "dog": 3}, "val": {"cat": 1, "dog": 1}})
    (root / "train" / "cat" / "zz.jpg").write_bytes(b"<html>")
    (root / "val" / "dog" / "empty.png").write_bytes(b"")
    data = data_of(root)
    assert sizes(data) == {"train": 6, "val": 2}
    assert {Path(p).name: r for p, r in data.bad_files.items()} == {
        "zz.jpg": "is not an image that Pillow can read",
        "empty.png": "the file is empty",
    }
    with pytest.raises(ValueError, match=r"2 files cannot be read(.|\n)*empty\.png: the file is empty"):
        data_of(root, on_bad_file="error")
    assert (root / "train" / "cat" / "zz.jpg").read_bytes() == b"<html>"  # never written to


def test_class_with_only_bad_files_is_an_error(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 3, "dog": 1}, "val": {"cat": 1}})
    (root / "train" / "dog" / "00.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="no readable training images of dog"):
        data_of(root)


# --- tables and torchvision --------------------------------------------------------------------------------------


def _table(root: Path, rows: list[list[str]]) -> Path:
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "labels.csv"


def test_csv_with_and_without_split(make_images: Callable[..., Path]) -> None:
    root = make_images({"": {"cat": 6, "dog": 6}})
    rows = [[f"{c}/{i:02d}.png", c] for c in ("cat", "dog") for i in range(6)]
    assert sizes(data_of(_table(root, [["path", "label"], *rows]))) == {"train": 10, "val": 2}
    marked = [[*row, "valid" if row[0][-5] == "0" else "train"] for row in rows]
    data = data_of(_table(root, [["path", "label", "split"], *marked]))
    assert sizes(data) == {"train": 10, "val": 2}
    assert data.splits["val"].keys == ["cat/00.png", "dog/00.png"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "label"], ["a", "b"]], r"needs the columns path, label.*got file, label"),
        ([["path", "label"], ["a.png", ""]], r"line 2: needs a path, a label"),
        ([["path", "label", "split"], ["a.png", "cat", "holdout"]], r"line 2.*train, val or test"),
    ],
)
def test_csv_errors_name_the_line(rows: list[list[str]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        data_of(_table(tmp_path, rows))


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch, n: int = 200) -> None:
    """A tiny archive in CIFAR-100's own format."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for split, count in (("train", n), ("test", n // 2)):
        labels = [i % 100 for i in range(count)]
        content = {"data": rng.integers(0, 255, (count, 3072), dtype=np.uint8), "fine_labels": labels}
        (folder / split).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i:02d}" for i in range(100)]}))
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(folder, "cifar-100-python")
    monkeypatch.setattr(datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a, **k: True)


def test_cifar100_holds_out_of_train_and_keeps_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    dataset = partial(datasets.CIFAR100, download=True)
    data = data_of(
        tmp_path, dataset=dataset, splits={"train": {"train": True}, "test": {"train": False}}, val_fraction=0.5
    )
    assert len(data.classes) == 100
    assert data.classes[:2] == ["c00", "c01"]
    assert sizes(data) == {"train": 100, "val": 100, "test": 100}
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape[1:] == (3, 16, 16)
    assert labels.tolist() == data.splits["val"].labels[: len(labels)]
    assert data.splits["test"].keys[0] == "test/0"


def test_dataset_offline_says_which_folder_to_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR100, "download", lambda self: None)
    with pytest.raises(FileNotFoundError, match=r"CIFAR100 could not be read from .*data\.root"):
        data_of(tmp_path, dataset=datasets.CIFAR100, splits={"train": {"train": True}})


def test_dataset_labels_out_of_range_are_an_error(tmp_path: Path) -> None:
    class Odd:
        classes = ("a", "b")
        targets = (0, 5)

        def __init__(self, root: str) -> None:
            pass

        def __len__(self) -> int:
            return 2

    with pytest.raises(ValueError, match=r"labels 0\.\.5 for 2 classes"):
        data_of(tmp_path, dataset=Odd, splits={"train": {}})


# --- loaders -----------------------------------------------------------------------------------------------------


def _epoch(data: ImageDataModule) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(data.train_dataloader())
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


@pytest.mark.parametrize("augment", ["none", "trivial"])
def test_train_loader_gives_the_same_epoch_with_any_number_of_workers(augment: str, photos: Path) -> None:
    one, two = (_epoch(data_of(photos, augment=augment, num_workers=n, batch_size=5)) for n in (0, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    other = _epoch(data_of(photos, augment=augment, seed=1))
    assert not torch.equal(one[1], other[1])


def test_train_loader_changes_with_the_epoch_and_repeats_it(photos: Path, trainer: Callable[..., Trainer]) -> None:
    epoch = 0
    sampler = EpochSampler(24, 0, lambda: epoch)
    first = list(sampler)
    epoch = 1
    second = list(sampler)
    epoch = 0
    assert list(sampler) == first
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(24))
    assert [i for _, i in first] != [i for _, i in second]


@pytest.mark.parametrize(
    ("n", "size", "world", "expected"),
    [
        (7, 4, 2, [[4], [3]]),
        (21, 4, 2, [[4, 4, 3], [4, 4, 2]]),
        (19, 4, 2, [[4, 6], [4, 5]]),  # 2 and 1 would be left
        (17, 4, 2, [[4, 5], [4, 4]]),
        (5, 1, 2, [[1, 2], [1, 1]]),
        (2, 4, 2, [[1], [1]]),
    ],
)
def test_full_batches_over_processes_are_as_many_and_hold_each_image_once(
    n: int, size: int, world: int, expected: list[list[int]]
) -> None:
    ranks = [list(BalancedBatchSampler(EpochSampler(n, 0, lambda: 3, rank, world), size)) for rank in range(world)]
    assert [[len(batch) for batch in batches] for batches in ranks] == expected
    alone = list(EpochSampler(n, 0, lambda: 3))
    assert sorted(key for batches in ranks for batch in batches for key in batch) == sorted(alone)
    assert {key for batches in ranks for key in batches[0]} == set(alone[: sum(sizes[0] for sizes in expected)])


def test_full_batches_of_fewer_images_than_processes_give_each_one() -> None:
    ranks = [list(BalancedBatchSampler(EpochSampler(2, 0, lambda: 0, rank, 5), 4)) for rank in range(5)]
    assert [[len(batch) for batch in batches] for batches in ranks] == [[1]] * 5


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (5, 4, [5])],
)
def test_full_batches_have_no_last_batch_of_one_and_lose_nothing(n: int, size: int, expected: list[int]) -> None:
    batches = BalancedBatchSampler(EpochSampler(n, 0, lambda: 0), size)
    assert [len(b) for b in batches] == expected
    assert len(batches) == len(expected)


def test_evaluation_loader_over_ranks_counts_each_image_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    for rank in range(5):
        data = data_of(photos)
        monkeypatch.setattr(data, "_rank", lambda rank=rank: (rank, 5))
        seen += [int(label) for _, labels in data.val_dataloader() for label in labels]
    assert sorted(seen) == sorted(data.splits["val"].labels)


def test_class_weights_are_inverse_frequencies(make_images: Callable[..., Path]) -> None:
    data = data_of(make_images({"train": {"cat": 6, "dog": 2}, "val": {"cat": 1, "dog": 1}}))
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
    data = data_of(photos, augment="basic", batch_size=6)
    images, labels = data.sample(6)
    first = next(iter(data.train_dataloader()))
    assert torch.equal(images, first[0])
    assert labels == first[1].tolist()


def test_seed_of_is_the_same_everywhere() -> None:
    assert derive_seed(0, 1, 2) == derive_seed(0, 1, 2) != derive_seed(0, 2, 1)
    assert 0 <= derive_seed(-1) < 2**63


@pytest.mark.real
def test_hymenoptera_is_244_and_153_and_its_placeholder_is_named(shared: Path) -> None:
    data = ImageDataModule(shared / "data" / "hymenoptera_data", num_workers=0).prepare()
    assert sizes(data) == {"train": 244, "val": 153}
    assert data.classes == ["ants", "bees"]
    assert any("1 .gif" in note for note in data.notes)
    assert not data.bad_files


def test_switchable_loader_asks_at_the_first_batch_and_shows_lightning_the_workers() -> None:
    class Loader(list[int]):
        _iterator: object = None

    pixels, asked = Loader([3, 4]), []

    def features() -> list[int] | None:
        asked.append(True)
        return [1, 2] if len(asked) == 1 else None

    made: list[Loader] = []

    def make() -> Any:
        made.append(pixels)
        return pixels

    loader = SwitchableLoader(lambda: 2, features, make)
    epoch = iter(loader)
    assert len(loader) == 2
    assert not asked  # Lightning makes the iterator before there are features
    assert list(epoch) == [1, 2]
    assert not made
    assert loader._iterator is None
    assert list(loader) == list(loader) == [3, 4]
    assert made == [pixels]  # once, so that its workers stay
    pixels._iterator = object()
    assert loader._iterator is pixels._iterator
    loader._iterator = None  # Lightning has ended them
    assert pixels._iterator is None


def test_each_file_is_opened_once_before_the_first_epoch(
    photos: Path, monkeypatch: pytest.MonkeyPatch, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    opened: Counter[str] = Counter()
    original = builtins.open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).startswith(str(photos)):
            opened[str(file)] += 1
        return original(file, *args, **kwargs)

    class First(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(Counter(opened))

    seen: list[Counter[str]] = []
    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(io, "open", counting)
    data = ImageDataModule(photos, batch_size=8, num_workers=0, cache_images="ram", cache_dir=tmp_path).prepare()
    module = FineTuner("squeezenet1_1", data.classes, "finetune", weights="none", preprocess={"size": 32})
    trainer(1, callbacks=[First()]).fit(module, datamodule=data)
    files = sorted(str(path) for path in photos.rglob("*.png"))
    assert len(files) == 36
    assert seen == [Counter(dict.fromkeys(files, 1))]  # no second reading of sizes, of checksums, of headers
    assert opened == Counter(dict.fromkeys(files, 2))  # and once decoded, in the first epoch
