"""Test `finetune.data.sources`."""

from __future__ import annotations

import builtins
import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from finetune import FineTuner, ImageDataModule
from finetune.images import decode
from tests.data.helpers import make_data
from tests.helpers import write_images


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


@pytest.mark.parametrize("options", [{"dataset": [1, 2]}, {"dataset": list}, {"dataset": list, "splits": {}}])
def test_a_data_set_without_its_splits_or_that_is_made_already_is_told_how_to_be_given(options: Any) -> None:
    with pytest.raises(ValueError, match=r"dataset= takes a class or a function that makes a data set, and splits="):
        ImageDataModule(**options).prepare()


@pytest.mark.parametrize("form", ["folders", "splits", "table"])
def test_an_archive_is_read_as_its_folder_would_be(form: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "photos", {"train" if form == "splits" else "": {"cat": 5, "dog": 5}})
    if form == "table":
        lines = [f"images/{c}{i}.png,{c}\n" for c in ("cat", "dog") for i in range(5)]
        (root / "images").mkdir()
        for path in sorted(root.glob("*/*.png")):
            path.rename(root / "images" / f"{path.parent.name}{int(path.stem)}.png")
        for name in ("cat", "dog"):
            (root / name).rmdir()
        (root / "labels.csv").write_text("path,label\n" + "".join(lines))
    plain = make_data(root, cache_dir=tmp_path / "cache")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, "photos"))
    packed = make_data(archive, cache_dir=tmp_path / "cache")
    assert {name: (s.keys, s.labels) for name, s in packed.splits.items()} == {
        name: (s.keys, s.labels) for name, s in plain.splits.items()
    }
    assert packed.notes[0].startswith(f"{archive} is an archive: its files were unpacked to {tmp_path / 'cache'}")
    assert torch.equal(packed.splits["val"].load(0), plain.splits["val"].load(0))
    assert packed.record().root == str(archive)


def test_where_columns_or_images_change_nothing_they_are_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.columns is for tables, and data\.root=.* is a folder without one"):
        ImageDataModule(photos, columns={"path": "id"}).prepare()
    with pytest.raises(ValueError, match=r"data\.images is for tables"):
        ImageDataModule(photos, images=photos).prepare()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["id"], r"data\.columns says which column is what, \{path: image_id, label: breed\}; got \['id'\]"),
        ({"lable": "breed"}, r"no key of data\.columns: 'lable'\. The nearest is label"),
    ],
)
def test_what_columns_may_be_is_said_at_once(columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule("nowhere", columns=columns)


def test_groups_that_are_said_twice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.group='\(p.+\)_' and data\.columns\.group='patient' both say"):
        ImageDataModule("t.csv", group=r"(p\d+)_", columns={"group": "patient"})
    ImageDataModule("t.csv", group="patient", columns={"group": "patient"})
    ImageDataModule("t.csv", group=r"(p\d+)_", columns={"group": None})


@pytest.mark.parametrize("name", ["photos.rar", "photos.7z"])
def test_archives_that_are_not_read_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{name} is an archive of a kind that is not read"):
        ImageDataModule(tmp_path / name).prepare()
