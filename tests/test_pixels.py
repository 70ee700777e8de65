from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from finetune import FineTuner, ImageDataModule
from finetune.data import pixel_cache
from finetune.data.pixel_cache import PIXELS, SUMS, PixelCache
from finetune.data.readers import FileReader
from finetune.images import decode
from finetune.images.info import scan_images
from finetune.io.store import Cache
from finetune.runtime import hardware


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Pictures of several sizes and kinds: turned by EXIF, grey, with transparency."""
    rng = np.random.default_rng(0)
    found = []
    for i, (mode, suffix) in enumerate(
        [("RGB", "jpg"), ("RGB", "jpg"), ("L", "jpg"), ("RGBA", "png"), ("CMYK", "jpg")]
    ):
        channels = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4}[mode]
        array = rng.integers(0, 255, (20 + i, 30, channels), dtype=np.uint8)
        image = Image.fromarray(array.squeeze(), mode)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 1 else 1
        path = tmp_path / f"{i}.{suffix}"
        image.save(path, exif=exif)
        found.append(str(path))
    return found


class Counted:
    """A reader that counts."""

    kind = "files"

    def __init__(self, paths: list[str]) -> None:
        self.paths: list[str] | None = paths
        self.reader, self.calls = FileReader(paths), 0

    def __call__(self, i: int) -> Tensor:
        self.calls += 1
        return self.reader(i)


def sizes_of(paths: list[str]) -> list[tuple[int, int]]:
    found = scan_images(paths)
    return [found[path].upright_size for path in paths]


def kept(paths: list[str], folder: Path) -> tuple[PixelCache, Counted]:
    counted = Counted(paths)
    store = PixelCache(counted, sizes_of(paths), folder)
    folder.mkdir(exist_ok=True)
    store.reserve(folder)
    return store, counted


def test_upright_size_is_that_of_the_pixels(paths: list[str]) -> None:
    assert sizes_of(paths) == [tuple(decode.load_pixels(p).shape[1:]) for p in paths]
    assert sizes_of(paths)[1] == (30, 21)


def test_load_pixels_is_what_pillow_gives(paths: list[str]) -> None:
    for path in paths:
        ours, theirs = decode.load_pixels(path), decode.to_pixels(decode.load_image(path))
        assert ours.shape == theirs.shape
        assert (ours.int() - theirs.int()).abs().max() <= 2, path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_pixels_honours_exif_orientation(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :16] = 255
    Image.fromarray(array).save(tmp_path / "a.jpg", exif=exif, quality=95)
    ours, theirs = decode.load_pixels(tmp_path / "a.jpg"), decode.to_pixels(decode.load_image(tmp_path / "a.jpg"))
    assert (ours.int() - theirs.int()).abs().max() <= 2


def test_load_pixels_names_a_truncated_file(paths: list[str], tmp_path: Path) -> None:
    data = Path(paths[0]).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(decode.BadImageError, match=r"cut\.jpg: is damaged"):
        decode.load_pixels(tmp_path / "cut.jpg")


def test_each_image_is_decoded_once(paths: list[str], tmp_path: Path) -> None:
    store, counted = kept(paths, tmp_path / "kept")
    first = [store(i) for i in range(len(paths))]
    second = [store(i) for i in range(len(paths))]
    assert counted.calls == len(paths)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    second[0].zero_()  # nothing that is done to an image gets into the file
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert torch.equal(again(0), first[0])
    assert counted.calls == len(paths)


def test_pixels_are_shared_between_processes(paths: list[str], tmp_path: Path) -> None:
    store, counted = kept(paths, tmp_path / "kept")
    store(0)
    worker = multiprocessing.get_context("fork").Process(target=store, args=(1,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    store(1)
    assert counted.calls == 1


def test_damaged_pixels_are_decoded_again(paths: list[str], tmp_path: Path) -> None:
    store, _ = kept(paths, tmp_path / "kept")
    whole = [store(i) for i in range(len(paths))]
    with (tmp_path / "kept" / PIXELS).open("r+b") as file:
        file.seek(100)
        file.write(bytes(500))
    again, counted = pickle.loads(pickle.dumps(store)), Counted(paths)  # noqa: S301
    again.reader = counted
    assert all(torch.equal(again(i), whole[i]) for i in range(len(paths)))
    assert counted.calls >= 1


@pytest.mark.parametrize("name", [PIXELS, SUMS])
def test_a_truncated_file_costs_a_decoding(name: str, paths: list[str], tmp_path: Path) -> None:
    store, _ = kept(paths, tmp_path / "kept")
    whole = [store(i) for i in range(len(paths))]
    with (tmp_path / "kept" / name).open("r+b") as file:
        file.truncate(0)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert all(torch.equal(again(i), whole[i]) for i in range(len(paths)))


def test_a_full_disk_costs_a_decoding(paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, counted = kept(paths, tmp_path / "kept")

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    for _ in range(2):
        store(0)
    assert counted.calls == 2


def test_on_disk_serves_the_next_run(paths: list[str], tmp_path: Path) -> None:
    cache, sizes = Cache(tmp_path / "cache"), sizes_of(paths)
    first = pixel_cache.on_disk(Counted(paths), sizes, cache, {"a": 1}, "pixels")
    image = first(2)
    counted = Counted(paths)
    second = pixel_cache.on_disk(counted, sizes, cache, {"a": 1}, "pixels")
    assert torch.equal(second(2), image)
    assert counted.calls == 0
    (second.folder / PIXELS).write_bytes(b"short")
    third = pixel_cache.on_disk(Counted(paths), sizes, cache, {"a": 1}, "pixels")
    assert torch.equal(third(2), image)


def test_in_memory_goes_with_its_loader(paths: list[str]) -> None:
    store = pixel_cache.in_temporary_file(Counted(paths), sizes_of(paths))
    store(0)
    folder = store.folder
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc").is_dir() else 0
    assert folder.is_dir()
    del store
    assert not folder.exists()
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) <= descriptors - 2


def test_in_memory_refuses_what_has_no_room_and_clears_up_after_the_killed(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "finetune-pixels-999999999-x"
    left.mkdir()
    mine = tmp_path / f"finetune-pixels-{os.getpid()}-x"
    mine.mkdir()
    with pytest.raises(OSError, match="more than half of what is free"):
        pixel_cache.in_temporary_file(Counted(paths), [(2**20, 2**20)])
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


def test_load_pixels_without_torchvisions_decoder(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = decode.load_pixels(paths[0])
    monkeypatch.setattr(decode, "decode_jpeg", None)
    assert (decode.load_pixels(paths[0]).int() - before.int()).abs().max() <= 2


def test_a_split_that_was_held_out_is_kept_too(make_images: Callable[..., Path]) -> None:
    data = ImageDataModule(make_images({"": {"cat": 5, "dog": 5}})).prepare()
    assert "decoded once and kept in a temporary file" in data.cache_pixels(5)
    assert set(data._pixels) == {"train", "val"}
    before = [data.splits["val"].load(i) for i in range(2)]
    assert all(torch.equal(data._pixels["val"](i), before[i]) for i in range(2))


def test_fingerprint_follows_the_files_of_a_split(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images({"": {"cat": 5, "dog": 5}})
    table = tmp_path / "table.csv"
    lines = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(root.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *lines]))
    for when, where in enumerate((root, table)):
        data = ImageDataModule(where).prepare()
        before = {name: data.fingerprint(name) for name in ("train", "val")}
        assert len(set(before.values())) == 2
        changed = tmp_path / data.splits["val"].keys[0] if where == table else root / data.splits["val"].keys[0]
        os.utime(changed, (when, when))
        assert data.fingerprint("train") == before["train"]
        assert data.fingerprint("val") != before["val"]
