"""Test `finetune.data.pixel_cache`."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from finetune import FineTuner, ImageDataModule
from finetune.data import pixel_cache
from finetune.data.pixel_cache import PIXELS, SUMS, PixelCache
from finetune.data.readers import FileReader
from finetune.io.store import Cache
from finetune.runtime import hardware
from tests.helpers import sizes_of


class Counted:
    """A reader that counts."""

    kind = "files"

    def __init__(self, paths: list[str]) -> None:
        self.paths: list[str] | None = paths
        self.reader, self.calls = FileReader(paths), 0

    def content_key(self) -> None:
        return None

    def __call__(self, i: int) -> Tensor:
        self.calls += 1
        return self.reader(i)


def kept(paths: list[str], folder: Path) -> tuple[PixelCache, Counted]:
    counted = Counted(paths)
    store = PixelCache(counted, sizes_of(paths), folder)
    folder.mkdir(exist_ok=True)
    store.reserve(folder)
    return store, counted


def test_each_image_is_decoded_once(odd_images: list[str], tmp_path: Path) -> None:
    store, counted = kept(odd_images, tmp_path / "kept")
    first = [store(i) for i in range(len(odd_images))]
    second = [store(i) for i in range(len(odd_images))]
    assert counted.calls == len(odd_images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    second[0].zero_()  # nothing that is done to an image gets into the file
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert torch.equal(again(0), first[0])
    assert counted.calls == len(odd_images)


def test_pixels_are_shared_between_processes(odd_images: list[str], tmp_path: Path) -> None:
    store, counted = kept(odd_images, tmp_path / "kept")
    store(0)
    worker = multiprocessing.get_context("fork").Process(target=store, args=(1,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    store(1)
    assert counted.calls == 1


def test_damaged_pixels_are_decoded_again(odd_images: list[str], tmp_path: Path) -> None:
    store, _ = kept(odd_images, tmp_path / "kept")
    whole = [store(i) for i in range(len(odd_images))]
    with (tmp_path / "kept" / PIXELS).open("r+b") as file:
        file.seek(100)
        file.write(bytes(500))
    again, counted = pickle.loads(pickle.dumps(store)), Counted(odd_images)  # noqa: S301
    again.reader = counted
    assert all(torch.equal(again(i), whole[i]) for i in range(len(odd_images)))
    assert counted.calls >= 1


@pytest.mark.parametrize("name", [PIXELS, SUMS])
def test_a_truncated_file_costs_a_decoding(name: str, odd_images: list[str], tmp_path: Path) -> None:
    store, _ = kept(odd_images, tmp_path / "kept")
    whole = [store(i) for i in range(len(odd_images))]
    with (tmp_path / "kept" / name).open("r+b") as file:
        file.truncate(0)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert all(torch.equal(again(i), whole[i]) for i in range(len(odd_images)))


def test_a_full_disk_costs_a_decoding(odd_images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, counted = kept(odd_images, tmp_path / "kept")

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    for _ in range(2):
        store(0)
    assert counted.calls == 2


def test_on_disk_serves_the_next_run(odd_images: list[str], tmp_path: Path) -> None:
    cache, sizes = Cache(tmp_path / "cache"), sizes_of(odd_images)
    first = pixel_cache.on_disk(Counted(odd_images), sizes, cache, {"a": 1}, "pixels")
    image = first(2)
    counted = Counted(odd_images)
    second = pixel_cache.on_disk(counted, sizes, cache, {"a": 1}, "pixels")
    assert torch.equal(second(2), image)
    assert counted.calls == 0
    (second.folder / PIXELS).write_bytes(b"short")
    third = pixel_cache.on_disk(Counted(odd_images), sizes, cache, {"a": 1}, "pixels")
    assert torch.equal(third(2), image)


def test_in_memory_goes_with_its_loader(odd_images: list[str]) -> None:
    store = pixel_cache.in_temporary_file(Counted(odd_images), sizes_of(odd_images))
    store(0)
    folder = store.folder
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc").is_dir() else 0
    assert folder.is_dir()
    del store
    assert not folder.exists()
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) <= descriptors - 2


def test_in_memory_refuses_what_has_no_room_and_clears_up_after_the_killed(
    odd_images: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "finetune-pixels-999999999-x"
    left.mkdir()
    mine = tmp_path / f"finetune-pixels-{os.getpid()}-x"
    mine.mkdir()
    with pytest.raises(OSError, match="more than half of what is free"):
        pixel_cache.in_temporary_file(Counted(odd_images), [(2**20, 2**20)])
    assert list(tmp_path.glob("finetune-pixels-*")) == [mine]


@pytest.mark.parametrize("mode", ["auto", "disk", *[pytest.param(m, marks=pytest.mark.slow) for m in ("ram", "off")]])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_is_the_same_with_kept_pixels(
    mode: str, workers: int, photos: Path, trainer: Callable[..., Trainer], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def head(mode: str) -> Tensor:
        torch.manual_seed(0)
        module = FineTuner("squeezenet1_1", ["cat", "dog", "emu"], "finetune", weights="none", preprocess={"size": 32})
        data = ImageDataModule(photos, cache_images=mode, num_workers=workers, cache_dir=tmp_path)
        trainer(2).fit(module, datamodule=data)
        return next(module.head.parameters()).detach()

    kept, plain = head(mode), head("off")
    said = " ".join(capsys.readouterr().out.split())
    where = {
        "auto": "kept in a temporary file",
        "ram": "kept in a temporary file",
        "disk": f"kept in {tmp_path}",
        "off": "decoded again",
    }
    assert where[mode] in said
    assert torch.equal(kept, plain)


def test_auto_keeps_nothing_that_does_not_fit(
    photos: Path, monkeypatch: pytest.MonkeyPatch, make_images: Callable[..., Path]
) -> None:
    data = ImageDataModule(photos).prepare()
    monkeypatch.setattr(hardware, "free_memory", lambda: 1000)
    assert "are more than a quarter of free memory" in data.cache_pixels(5)
    monkeypatch.setattr(hardware, "free_memory", lambda: 0)
    assert "how much memory is free is not known" in data.cache_pixels(5)
    monkeypatch.setattr(hardware, "free_memory", lambda: 1000)
    assert data.cache_pixels(1) == ""
    monkeypatch.setattr(hardware, "free_memory", lambda: 10**9)
    assert "kept in a temporary file" in data.cache_pixels(5)
    data.cache_images, data.cache.limit = "disk", 10
    assert "more than paths.cache_gib" in data.cache_pixels(5)


def test_a_split_that_was_held_out_is_kept_too(make_images: Callable[..., Path]) -> None:
    data = ImageDataModule(make_images({"": {"cat": 5, "dog": 5}})).prepare()
    assert "decoded once and kept in a temporary file" in data.cache_pixels(5)
    assert set(data._pixels) == {"train", "val"}
    before = [data.splits["val"].load(i) for i in range(2)]
    assert all(torch.equal(data._pixels["val"](i), before[i]) for i in range(2))
