"""Test `finetune.inspection.checks`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.images import info
from finetune.images.transforms import Preprocess
from finetune.inspection import checks
from tests.helpers import make_image
from tests.inspection.helpers import found_in


def test_find_has_nothing_to_say_of_good_data(ants_and_bees: Path) -> None:
    assert found_in(ants_and_bees) == {}


def _copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / source, root / target)


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def _save(name: str, image: Image.Image, **options: object) -> Callable[[Path], object]:
    return lambda root: image.save(root / name, **options)  # type: ignore[arg-type]


def _many(root: Path) -> None:
    for i in range(60):
        make_image(200 + i, 64).save(root / f"train/ants/x{i}.png")


def _nest(root: Path) -> None:
    (root / "train/ants/in").mkdir()
    make_image(300).save(root / "train/ants/in/x.png")


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[info.ORIENTATION] = 3
    return exif


DEEP = Image.fromarray((np.random.default_rng(0).random((40, 40)) * 65535).astype(np.uint16))


CASES = {
    "unreadable": ("problem", _write("train/ants/x.jpg", b"<html>"), ["train/ants/x.jpg"]),
    "not_read": ("warning", _write("train/ants/x.psd", b"8BPS"), ["train/ants/x.psd"]),
    "hidden": ("note", _write("train/ants/._x.jpg", b"x"), ["train/ants/._x.jpg"]),
    "duplicates_across_splits": ("problem", _copy("train/ants/0.png", "val/ants/x.png"), ["train/ants/0.png", "val/ants/x.png"]),
    "duplicates_across_classes": ("problem", _copy("train/ants/0.png", "train/bees/x.png"), ["train/ants/0.png", "train/bees/x.png"]),
    "duplicates": ("note", _copy("train/ants/0.png", "train/ants/x.png"), ["train/ants/0.png", "train/ants/x.png"]),
    "near_duplicates_across_splits": ("warning", _save("val/ants/x.jpg", make_image(0, 50)), ["train/ants/0.png", "val/ants/x.jpg"]),
    "near_duplicates_across_classes": ("warning", _save("train/bees/x.jpg", make_image(0, 50)), ["train/ants/0.png", "train/bees/x.jpg"]),
    "near_duplicates": ("note", _save("train/ants/x.jpg", make_image(0, 50)), ["train/ants/0.png", "train/ants/x.jpg"]),
    "empty_class": ("problem", lambda root: (root / "train" / "cats").mkdir(), []),
    "unknown_class": ("problem", lambda root: shutil.copytree(root / "val" / "ants", root / "val" / "moths"), []),
    "missing_class": ("warning", lambda root: shutil.rmtree(root / "val" / "bees"), []),
    "few": ("warning", lambda root: [(root / "train" / "bees" / f"{i}.png").unlink() for i in (1, 2)], []),
    "few_val": ("warning", lambda root: (root / "val" / "bees" / "1.png").unlink(), []),
    "imbalance": ("warning", _many, []),
    "spelling": ("problem", lambda root: (root / "val" / "ants").rename(root / "val" / "Ants"), []),
    "folders_not_read": ("warning", lambda root: (root / "more").mkdir(), []),
    "nested": ("note", _nest, ["train/ants/in/x.png"]),
    "layout": ("problem", lambda root: shutil.copytree(root / "val", root / "validation"), []),
    "blank": ("warning", _save("train/ants/x.png", Image.new("RGB", (64, 64), (250, 250, 250))), ["train/ants/x.png"]),
    "grey": ("note", _save("train/ants/x.png", make_image(300).convert("L")), ["train/ants/x.png"]),
    "deep_grey": ("note", _save("train/ants/x.png", DEEP), ["train/ants/x.png"]),
    "cmyk": ("note", _save("train/ants/x.jpg", make_image(300).convert("CMYK")), ["train/ants/x.jpg"]),
    "palette": ("note", _save("train/ants/x.png", make_image(300).convert("P")), ["train/ants/x.png"]),
    "alpha": ("note", _save("train/ants/x.png", make_image(300).convert("RGBA")), ["train/ants/x.png"]),
    "rotated": ("note", _save("train/ants/x.jpg", make_image(300), exif=_turned()), ["train/ants/x.jpg"]),
    "animated": ("note", _save("train/ants/x.webp", make_image(300), save_all=True, append_images=[make_image(301)]), ["train/ants/x.webp"]),
}  # fmt: skip
"""Finding -> its severity, what brings it about, and the files that it names."""


@pytest.mark.parametrize("name", CASES)
def test_find_names(name: str, ants_and_bees: Path) -> None:
    severity, bring_about, files = CASES[name]
    bring_about(ants_and_bees)
    found = found_in(ants_and_bees)
    assert name in found, list(found)
    assert found[name].severity == severity
    assert sorted(key for group in found[name].groups for key in group) == files
    assert found[name].message.endswith((".", ")"))
    # nothing else is alarmed, but for what follows from it
    follows = {"unknown_class": {"duplicates_across_classes"}, "spelling": {"unknown_class", "missing_class"}}
    follows |= {"layout": {"folders_not_read"}, "empty_class": {"missing_class"}}
    graver = {f.name for f in found.values() if f.severity != "note"} - {name} - follows.get(name, set())
    assert graver == set()


def test_find_judges_size_and_brightness_by_the_preprocessing(ants_and_bees: Path) -> None:
    assert {"tiny", "unlike_the_weights"} & set(found_in(ants_and_bees)) == set()
    small = found_in(ants_and_bees, Preprocess())
    assert small["tiny"].files == 22
    assert small["tiny"].severity == "warning"
    assert "tiny" not in found_in(ants_and_bees, Preprocess(size=64, resize=72))
    dark = found_in(ants_and_bees, Preprocess(mean=(0.02, 0.02, 0.02), std=(0.2, 0.2, 0.2)))
    assert "mean 0.49/0.49/0.50" in dark["unlike_the_weights"].message


def test_uncertainty_gives_wilsons_interval() -> None:
    found = checks.validation_uncertainty(153)
    assert "84.5% and 94.0%" in found.message
    assert "above 97.6%" in found.message
    assert checks.validation_uncertainty(20).severity == "warning"
    assert "too few to evaluate on" in checks.validation_uncertainty(12).message


def test_uncertainty_of_many_images_is_a_note() -> None:
    assert checks.validation_uncertainty(10_000).severity == "note"
