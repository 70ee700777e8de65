"""Test `finetune.data.image_options`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer
from PIL import Image

from finetune import FineTuner, ImageDataModule, Preprocess
from finetune.data import image_options
from finetune.data.image_options import ImageOptions
from finetune.images.decode import BadImageError
from tests.data.helpers import SMALL_PREPROCESS, make_data
from tests.helpers import make_image

LEVELS = {"train": (300, 2000), "val": (100, 4000)}
"""The lowest and the highest count of a split."""


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """Folders of counts in 16 bits, the one class brighter; validation goes beyond training."""
    rng, root = np.random.default_rng(0), tmp_path / "counts"
    for split, (low, high) in LEVELS.items():
        for at, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(low, high - 400, (20, 20)) + 400 * at
                pixels.flat[:4] = (low, low, high, high)
                Image.fromarray(pixels.astype(np.uint16)).save(root / split / name / f"{i}.png")
    return root


def by_hand(path: str, low: float, high: float) -> np.ndarray:
    with Image.open(path) as image:
        return np.clip((np.asarray(image).astype(float) - low) / (high - low) * 255, 0, 255)


def pixels_of(data: ImageDataModule, split: str, position: int = 0) -> np.ndarray:
    return data.splits[split].load(position)[0].numpy().astype(float)


def test_auto_takes_the_counts_of_the_training_images_for_every_split(counts: Path) -> None:
    data = make_data(counts)
    assert data.final_preprocess.depth == LEVELS["train"]
    assert any(
        "the counts 300 to 2000 become black to white, those of the training images" in note for note in data.notes
    )
    for split in LEVELS:
        path = (data.splits[split].load.paths or [])[0]
        assert np.abs(pixels_of(data, split) - by_hand(path, 300, 2000)).max() <= 0.51


@pytest.mark.parametrize(
    ("depth", "expected", "low", "high"), [("full", (0, 65535), 0, 65535), ([50, 900], (50, 900), 50, 900)]
)
def test_full_and_a_given_range_are_taken(counts: Path, depth: Any, expected: Any, low: float, high: float) -> None:
    data = make_data(counts, depth=depth)
    assert data.final_preprocess.depth == expected
    path = (data.splits["val"].load.paths or [])[0]
    assert np.abs(pixels_of(data, "val") - by_hand(path, low, high)).max() <= 0.51
    assert sum("grey of more than 8 bits in 16 images" in note for note in data.notes) == 1


def test_a_range_that_the_weights_bring_wins_and_the_difference_is_said(counts: Path) -> None:
    data = make_data(counts, preprocess=Preprocess(size=16, resize=16, depth=(0, 4095)))
    assert data.final_preprocess.depth == (0, 4095)
    (note,) = (note for note in data.notes if "grey of more" in note)
    assert "0 to 4095" in note
    assert "the training images have 300 to 2000: data.depth=" in note
    assert make_data(counts, preprocess=data.preprocess, depth="full").final_preprocess.depth == (0, 65535)


def test_the_notes_speak_of_the_range_of_the_network_once_it_is_known(counts: Path) -> None:
    data = make_data(counts, preprocess=None)
    others = [note for note in data.notes if "grey of more" not in note]
    for brought, said in (((0, 4095), "0 to 4095 become black to white, those of the weights"), (None, "300 to 2000")):
        agreed = data.adapt_to(data.classes, Preprocess(depth=brought), 0)
        assert agreed.depth == (brought or LEVELS["train"])
        (note,) = (note for note in data.notes if "grey of more" in note)
        assert said in note
        assert [note for note in data.notes if "grey of more" not in note] == others


def test_full_is_the_range_of_the_files_type_and_stays_with_the_model(tmp_path: Path) -> None:
    for name, low in (("dark", -300), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            counts = np.linspace(low, low + 20000 + i, 400).astype(np.int16).reshape(20, 20)
            tifffile.imwrite(tmp_path / "data" / name / f"{i}.tif", counts)
    data = make_data(tmp_path / "data", depth="full")
    assert data.final_preprocess.depth == (-32768, 32767)
    path = data.splits["train"].load.paths[0]  # type: ignore[index]
    expected = (tifffile.imread(path).astype(float) + 32768) / 257
    assert np.abs(pixels_of(data, "train") - expected).max() <= 0.51
    (note,) = (note for note in data.notes if "grey of more" in note)
    assert "all of 16 bits, -32768 to 32767" in note
    old = image_options.full_notes(data.image_info.items())  # what a model without a range does to them
    assert "0 to 65535, becomes black to white, and counts below 0 are black" in old[0]


def test_images_of_8_bits_have_no_range_and_no_note(ants_and_bees: Path) -> None:
    data = make_data(ants_and_bees)
    assert data.final_preprocess.depth is None
    assert data.notes == []


def test_an_image_that_makes_the_others_dark_is_named(counts: Path) -> None:
    for i in range(20):
        Image.fromarray(np.full((20, 20), 900 + i, np.uint16)).save(counts / "train" / "dark" / f"more{i}.png")
    bright = counts / "train" / "dark" / "bright.png"
    Image.fromarray(np.linspace(0, 60000, 400).astype(np.uint16).reshape(20, 20)).save(bright)
    data = make_data(counts)
    assert any(note.startswith(f"{bright} reaches 60000") and "no more than 2000" in note for note in data.notes)


def test_float_files_are_scaled_alike_and_need_a_range(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, peak in (("dark", 0.5), ("light", 100.0)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.linspace(0, peak, 64, dtype=np.float32).reshape(8, 8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.tif")
    data = make_data(tmp_path)
    assert data.final_preprocess.depth == (0, 100)
    dark, light = (pixels_of(data, "val", position).max() for position in (0, 5))
    assert (dark, light) == (1, 255)  # one scale, and not each image its own
    with pytest.raises(ValueError, match=r"floats or of 32 bits, .*data\.depth=auto"):
        make_data(tmp_path, depth="full")


def test_the_keys_of_kept_pixels_and_features_follow_the_range(counts: Path) -> None:
    keys = {str(depth): make_data(counts, depth=depth).fingerprint("train") for depth in ("auto", "full", [0, 4095])}
    assert len(set(keys.values())) == 3
    assert make_data(counts).fingerprint("train") == keys["auto"]


def test_a_module_takes_the_range_over_and_an_evaluation_keeps_it(counts: Path, trainer: Any, tmp_path: Path) -> None:
    data = make_data(counts, preprocess=None, image_size=32, resize="pad")
    module = FineTuner("squeezenet1_1", data.classes, weights="none")
    run: Trainer = trainer(1)
    run.fit(module, datamodule=data)
    assert (module.preprocess.depth, module.preprocess.fit) == (LEVELS["train"], "pad")
    module.save(tmp_path / "model.ckpt")
    loaded = FineTuner.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.preprocess == module.preprocess
    again = make_data(counts, preprocess=None, image_size=32)
    first = trainer(1).validate(module, datamodule=data, verbose=False)
    assert trainer(1).validate(loaded, datamodule=again, verbose=False) == first
    for argument, value in (("resize", "crop"), ("depth", [0, 9])):
        other = make_data(counts, preprocess=None, image_size=32, **{argument: value})
        with pytest.raises(
            ValueError, match=rf"the module that is evaluated has .*: give ImageDataModule\({argument}="
        ):
            trainer(1).validate(module, datamodule=other, verbose=False)
        with pytest.raises(ValueError, match="say it in one place"):
            trainer(1).validate(loaded, datamodule=other, verbose=False)


def test_a_model_without_a_range_is_evaluated_in_python_as_it_was_trained(counts: Path, trainer: Any) -> None:
    module = FineTuner("squeezenet1_1", ["dark", "light"], weights="none", preprocess={"size": 32})
    with pytest.raises(ValueError, match=r"give ImageDataModule\(depth=\[0, 65535\]"):
        trainer(1).validate(module, datamodule=make_data(counts, preprocess=None, image_size=32), verbose=False)
    data = make_data(counts, preprocess=None, image_size=32, depth=[0, 65535])
    assert trainer(1).validate(module, datamodule=data, verbose=False)


class Deep(torch.utils.data.Dataset[Any]):
    """Grey of 16 bits that is no file."""

    classes = ("dark", "light")

    def __init__(self, count: int = 8) -> None:
        self.targets = [i % 2 for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.full((16, 16), 1000 + i, np.uint16), self.targets[i]


def test_deep_images_of_a_data_set_need_a_range(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"dataset": Deep, "splits": {"train": {"count": 12}}, "preprocess": SMALL_PREPROCESS}
    data = ImageDataModule(**arguments, depth=[1000, 1010]).prepare()
    position = data.splits["val"].keys[0].rpartition("/")[2]
    assert data.splits["val"].load(0).unique().tolist() == [min(255, round(int(position) * 25.5))]
    with pytest.raises(BadImageError, match=r"data\.depth=\[low,high\]"):
        ImageDataModule(**arguments).prepare().splits["val"].load(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"resize": "stretch"}, r"no data\.resize 'stretch'.*squash"), ({"depth": "deep"}, r"data\.depth takes auto")],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageOptions(**options)


def test_files_that_are_read_in_part_are_said_before_training(ants_and_bees: Path) -> None:
    folder = ants_and_bees / "train" / "ants"
    make_image(300, 256).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-40])
    make_image(301).save(folder / "moving.gif", save_all=True, append_images=[make_image(302)])
    notes = make_data(ants_and_bees).notes
    assert any("cut off: up to" in note and "cut.jpg" in note for note in notes)
    assert any(note.startswith("1 of 24 images of several frames") and "moving.gif" in note for note in notes)


def test_larger_images_are_left_out_unless_the_limit_is_raised(ants_and_bees: Path, tmp_path: Path) -> None:
    make_image(300, 100).save(ants_and_bees / "train" / "ants" / "large.png")
    for limit, left_out in ((9_999, 1), (10_000, 0), (9_999, 1)):  # what was scanned before is not forgotten either way
        data = make_data(ants_and_bees, max_pixels=limit, cache_dir=tmp_path / "cache")
        assert len(data.bad_files) == left_out
        assert all("give data.max_pixels=10000" in reason for reason in data.bad_files.values())


def test_heic_files_without_their_package_are_named_with_what_reads_them(
    without_heic: None, ants_and_bees: Path
) -> None:
    (ants_and_bees / "train" / "ants" / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    assert any(
        "1 .heic" in note and "pip install 'finetune-lightning[heic]'" in note
        for note in make_data(ants_and_bees).notes
    )
    (ants_and_bees / "train" / "cats").mkdir()
    (ants_and_bees / "train" / "cats" / "phone.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no images in cats\..*finetune-lightning\[heic\]"):
        make_data(ants_and_bees)
