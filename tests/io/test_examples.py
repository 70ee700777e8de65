"""Test `finetune.io.examples`."""

from __future__ import annotations

import re
import socket
import sys
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from finetune import ImageDataModule
from finetune.io import examples, paths
from finetune.io.download import Archive, fetch


def _fail(*args: Any) -> None:
    raise AssertionError("called")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The patches, made by a process in which no socket can be opened."""
    pytest.importorskip("skimage")
    root = tmp_path_factory.mktemp("examples") / "photos"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", _fail)
        patch.setattr(socket, "create_connection", _fail)
        fetch(Archive("skimage:photos"), root)
    return root


def corner(path: Path) -> tuple[int, int]:
    """Return left and top as the name of a patch has them."""
    left, top = re.fullmatch(r"x(\d+)_y(\d+)", path.stem).groups()  # type: ignore[union-attr]
    return int(left), int(top)


def read_pixels(path: Path, mode: str | None = None) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode)).astype(float)


def photograph(name: str) -> np.ndarray:
    import skimage

    path = Path(skimage.__file__).parent / "data" / examples.PHOTOS[name]
    return read_pixels(path, "L")


def test_photos_have_24_patches_of_48_pixels_of_each_class_in_each_split(photos: Path) -> None:
    for split in ("train", "val"):
        assert sorted(p.name for p in (photos / split).iterdir()) == [
            "brick", "cat", "coins", "galaxies", "grass", "gravel", "moon", "tissue",
        ]  # fmt: skip
        for folder in (photos / split).iterdir():
            shapes = [read_pixels(path).shape for path in folder.iterdir()]
            assert shapes == 24 * [(48, 48)]  # grey: one value a pixel


def test_photos_of_train_and_val_share_no_pixel(photos: Path) -> None:
    for name in examples.PHOTOS:
        height, width = photograph(name).shape
        seen = np.zeros((height, width), int)
        for split, low, high in (("train", 0, width / 2), ("val", width / 2, width)):
            for path in (photos / split / name).iterdir():
                left, top = corner(path)
                assert low <= left
                assert left + 48 <= high
                seen[top : top + 48, left : left + 48] += 1
        assert seen.sum() == 48 * 48 * 48  # none leaves the photograph
        assert seen.max() == 1, name


def test_photos_are_the_pixels_of_the_photograph_with_one_brightness(photos: Path) -> None:
    for path in photos.glob("*/*/*.png"):
        left, top = corner(path)
        original = photograph(path.parent.name)[top : top + 48, left : left + 48]
        patch = read_pixels(path)
        shift = 128 - original.mean()
        inside = (original + shift > 0) & (original + shift < 255)
        assert np.abs(patch - original - shift)[inside].max() <= 0.5, path
        assert abs(patch.mean() - 128) < 3, path  # a galaxy is cut at white


def test_photos_lie_in_the_wheel_of_scikit_image() -> None:
    pytest.importorskip("skimage")
    carried = {str(file) for file in files("scikit-image") or []}
    assert {f"skimage/data/{name}" for name in examples.PHOTOS.values()} <= carried


def test_photos_are_made_once_and_have_splits_of_their_own(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(examples.MAKERS, "skimage:photos", _fail)
    data = ImageDataModule(photos, url="skimage:photos", per_class=4, num_workers=0).prepare()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 32, "val": 192}


@pytest.mark.parametrize("address", ["sklearn:digits", "skimage:photos"])
def test_a_missing_package_names_the_extra_and_leaves_nothing(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(examples, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs scikit-\w+: pip install 'finetune-lightning\[demo\]'"):
        fetch(Archive(address), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_photograph_that_is_no_longer_carried_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setitem(examples.PHOTOS, "brick", "nosuch.png")
    with pytest.raises(FileNotFoundError, match=r"scikit-image has no .*nosuch\.png"):
        fetch(Archive("skimage:photos"), tmp_path / "photos")
    assert not (tmp_path / "photos").exists()


def test_every_address_of_the_configuration_that_is_not_on_the_network_has_its_maker() -> None:
    found: list[Any] = [OmegaConf.load(path) for path in (paths.CONF / "data").glob("*.yaml")]
    addresses = [config.get("url") for config in found]
    local = {address for address in addresses if address and not address.startswith("http")}
    assert local == examples.MAKERS.keys()


@pytest.mark.slow
def test_digits_are_written_once_as_1797_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    data = ImageDataModule(tmp_path / "digits", url="sklearn:digits", num_workers=0).prepare()
    assert data.classes == list("0123456789")
    assert sum(len(s) for s in data.splits.values()) == 1797
    monkeypatch.setitem(examples.MAKERS, "sklearn:digits", _fail)
    ImageDataModule(tmp_path / "digits", url="sklearn:digits", num_workers=0).prepare()
