"""Test `finetune.data.sources`."""

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
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torchvision import datasets

from finetune import FineTuner, ImageDataModule
from finetune.images import decode
from tests.data.helpers import make_data, split_sizes

# --- folders -----------------------------------------------------------------------------------------------------


def test_folder_with_split_names_as_others_write_them(make_images: Callable[..., Path]) -> None:
    data = make_data(make_images({"Training": {"cat": 5, "dog": 5}, "Testing": {"cat": 1, "dog": 1}}))
    assert split_sizes(data) == {"train": 8, "val": 2, "test": 2}


def test_folder_with_a_split_but_no_train_is_an_error(make_images: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="has test but no train folder"):
        make_data(make_images({"test": {"cat": 5, "dog": 5}, "": {"emu": 3}}))


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folder_with_splits(val: str, make_images: Callable[..., Path]) -> None:
    data = make_data(make_images({"train": {"cat": 3, "dog": 2}, val: {"cat": 1, "dog": 2}, "test": {"dog": 1}}))
    assert data.classes == ["cat", "dog"]
    assert split_sizes(data) == {"train": 5, "val": 3, "test": 1}
    assert data.splits["val"].keys == [f"{val}/cat/00.png", f"{val}/dog/00.png", f"{val}/dog/01.png"]
    assert data.splits["test"].labels == [1]
    assert any("test split has no images of cat" in note for note in data.notes)


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
        make_data(root)


def test_folder_of_loose_files_and_missing_folder_are_errors(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"has no folders in it \(1 images lie loose there\)"):
        make_data(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere: there is no such folder"):
        make_data(tmp_path / "nowhere")


def test_bad_files_are_left_out_and_listed(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 3, "dog": 3}, "val": {"cat": 1, "dog": 1}})
    (root / "train" / "cat" / "zz.jpg").write_bytes(b"<html>")
    (root / "val" / "dog" / "empty.png").write_bytes(b"")
    data = make_data(root)
    assert split_sizes(data) == {"train": 6, "val": 2}
    assert {Path(p).name: r for p, r in data.bad_files.items()} == {
        "zz.jpg": "is not an image that Pillow can read",
        "empty.png": "the file is empty",
    }
    with pytest.raises(ValueError, match=r"2 files cannot be read(.|\n)*empty\.png: the file is empty"):
        make_data(root, on_bad_file="error")
    assert (root / "train" / "cat" / "zz.jpg").read_bytes() == b"<html>"  # never written to


# --- tables and torchvision --------------------------------------------------------------------------------------


def _table(root: Path, rows: list[list[str]]) -> Path:
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "labels.csv"


def test_csv_with_and_without_split(make_images: Callable[..., Path]) -> None:
    root = make_images({"": {"cat": 6, "dog": 6}})
    rows = [[f"{c}/{i:02d}.png", c] for c in ("cat", "dog") for i in range(6)]
    assert split_sizes(make_data(_table(root, [["path", "label"], *rows]))) == {"train": 10, "val": 2}
    marked = [[*row, "valid" if row[0][-5] == "0" else "train"] for row in rows]
    data = make_data(_table(root, [["path", "label", "split"], *marked]))
    assert split_sizes(data) == {"train": 10, "val": 2}
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
        make_data(_table(tmp_path, rows))


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
    data = make_data(
        tmp_path, dataset=dataset, splits={"train": {"train": True}, "test": {"train": False}}, val_fraction=0.5
    )
    assert len(data.classes) == 100
    assert data.classes[:2] == ["c00", "c01"]
    assert split_sizes(data) == {"train": 100, "val": 100, "test": 100}
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape[1:] == (3, 16, 16)
    assert labels.tolist() == data.splits["val"].labels[: len(labels)]
    image, label = data._dataset("train")[0]
    assert image.shape == (3, 16, 16)
    assert label == data.splits["train"].labels[0]
    assert data.splits["test"].keys[0] == "test/0"


def test_dataset_offline_says_which_folder_to_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR100, "download", lambda self: None)
    with pytest.raises(FileNotFoundError, match=r"CIFAR100 could not be read from .*data\.root"):
        make_data(tmp_path, dataset=datasets.CIFAR100, splits={"train": {"train": True}})


def test_dataset_labels_out_of_range_are_an_error(tmp_path: Path) -> None:
    class Odd:
        classes = ("a", "b")
        targets = (0, 5)

        def __init__(self, root: str) -> None:
            pass

        def __len__(self) -> int:
            return 2

    with pytest.raises(ValueError, match=r"labels 0\.\.5 for 2 classes"):
        make_data(tmp_path, dataset=Odd, splits={"train": {}})


@pytest.mark.parametrize(("strategy", "before"), [("finetune", 1), ("feature_extract", 2)])
def test_a_scan_opens_each_file_once_and_the_first_epoch_or_the_features_decode_it_once(
    strategy: str, before: int, photos: Path, monkeypatch: pytest.MonkeyPatch, trainer: Callable[..., Trainer], tmp_path: Path,
) -> None:  # fmt: skip
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
    monkeypatch.setattr(
        decode, "read_file", lambda path: pytest.fail("these are no JPEG files")
    )  # it would not be counted
    data = ImageDataModule(photos, batch_size=8, num_workers=0, cache_images="ram", cache_dir=tmp_path).prepare()
    module = FineTuner("squeezenet1_1", data.classes, strategy, weights="none", preprocess={"size": 32})
    trainer(1, callbacks=[First()]).fit(module, datamodule=data)
    files = sorted(str(path) for path in photos.rglob("*.png"))
    assert len(files) == 36
    assert seen == [Counter(dict.fromkeys(files, before))]  # no second reading of sizes, of checksums, of headers
    assert set(opened.values()) == {2}
