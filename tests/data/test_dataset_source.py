"""Test `finetune.data.dataset_source`."""

from __future__ import annotations

import pickle
import tarfile
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from finetune.data.dataset_source import DatasetSource
from tests.data.helpers import make_data, split_sizes


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
    image, label = data.image_dataset("train")[0, 0]
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


class Mappings:
    """Items are mappings, and a column can be read without them, as in Hugging Face's data sets."""

    column_names: ClassVar = ["image", "label"]

    def __init__(self, names: list[str] | None) -> None:
        self.features = {"label": SimpleNamespace(names=names)}
        self.labels_of_items = [1, 0, 1] if names else ["emu", "cat", "emu"]

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: Any) -> Any:
        if key == "label":
            return self.labels_of_items
        return {"image": Image.new("RGB", (2, 2), (key, 0, 0)), "label": self.labels_of_items[key]}


@pytest.mark.parametrize("names", [["cat", "emu"], None])
def test_items_may_be_mappings_with_numbers_or_names_of_classes(names: list[str] | None) -> None:
    found = DatasetSource(lambda: Mappings(names), {"train": {}}).splits()["train"]
    assert found.labels == ["emu", "cat", "emu"]
    assert found.class_order() == ["cat", "emu"]
    assert found.reader(2)[:, 0, 0].tolist() == [2, 0, 0]


def test_a_hugging_face_data_set_is_read_with_its_names_and_its_own_fingerprint() -> None:
    hub = pytest.importorskip("datasets")
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["cat", "dog"])})
    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)]
    dataset = hub.Dataset.from_dict({"image": images, "label": [1, 0, 1]}, features=features)
    found = DatasetSource(lambda: dataset, {"train": {}}).splits()["train"]
    assert found.labels == ["dog", "cat", "dog"]
    assert dataset._fingerprint in " ".join(found.reader.content_key() or [])
    assert found.reader(1)[:, 0, 0].tolist() == [1, 0, 0]
