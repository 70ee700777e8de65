"""Test `finetune.inspection.camera_checks`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from finetune import ImageDataModule
from finetune.images.info import ImageInfo
from finetune.inspection.camera_checks import shapes
from finetune.inspection.inspect import inspect_data, training_findings
from finetune.inspection.scan import DatasetScan, ScannedImage
from tests.helpers import make_image


def scan_of(**splits: list[tuple[int, int]]) -> DatasetScan:
    """Images of some widths and heights, by split."""
    scan = DatasetScan(Path())
    for split, sizes in splits.items():
        for i, (width, height) in enumerate(sizes):
            scan.images.append(ScannedImage(f"{split}/{i}", f"{split}/{i}", split, "cat"))
            scan.image_info[f"{split}/{i}"] = ImageInfo(width=width, height=height)
    return scan


@pytest.mark.parametrize(
    ("sizes", "fit", "found"),
    [
        ([(300, 200)] * 3, "crop", []),  # 1.5 is that of cameras
        ([(302, 200)] * 3, "crop", ["elongated"]),
        ([(200, 302)] * 3, "crop", ["elongated"]),
        ([(480, 80), (200, 200), (210, 200)], "crop", []),  # few are
        ([(480, 80)] * 3, "squash", []),
        ([(480, 80)] * 3, "pad", []),
    ],
)
def test_long_images_are_found_where_they_are_cropped(sizes: list[tuple[int, int]], fit: str, found: list[str]) -> None:
    findings = list(shapes(scan_of(train=sizes), fit))
    assert [finding.name for finding in findings] == found
    for finding in findings:  # the header of a training prints the message alone, check the advice behind it
        assert all(finding.message.count(mend) == 1 for mend in ("data.resize=squash", "data.resize=pad"))
        assert "data.resize" not in finding.advice


def test_the_share_that_a_crop_shows_is_said() -> None:
    (found,) = shapes(scan_of(train=[(480, 80)] * 3), "crop")
    assert "6.0 times" in found.message
    assert "17%" in found.message


@pytest.mark.parametrize(("fit", "advice"), [("crop", "squash"), ("squash", "data.resize=pad shows"), ("pad", None)])
def test_splits_of_unlike_shapes_are_found(fit: str, advice: str | None) -> None:
    findings = list(shapes(scan_of(train=[(280, 200)] * 5, val=[(200, 280)] * 5), fit))
    assert [finding.name for finding in findings] == (["unlike_shapes"] if advice else [])
    assert all(str(advice) in finding.message and "data.resize" not in finding.advice for finding in findings)
    assert list(shapes(scan_of(train=[(280, 200)] * 5, val=[(260, 200)] * 5), "crop")) == []


def test_orientation_counts_for_the_shape() -> None:
    scan = scan_of(train=[(280, 200)] * 5, val=[(200, 280)] * 5)
    for i in range(5):
        scan.image_info[f"val/{i}"] = ImageInfo(width=200, height=280, orientation=6)
    assert list(shapes(scan, "crop")) == []


def make_data(root: Path, tmp_path: Path, **options: str) -> ImageDataModule:
    return ImageDataModule(root, image_size=64, num_workers=0, cache_dir=tmp_path / "cache", **options)  # type: ignore[arg-type]


def test_training_and_check_warn_of_long_images_until_they_are_squashed(ants_and_bees: Path, tmp_path: Path) -> None:
    for path in ants_and_bees.rglob("*.png"):
        Image.open(path).resize((160, 64)).save(path)
    assert [f.name for f in training_findings(make_data(ants_and_bees, tmp_path).prepare())] == ["elongated"]
    assert training_findings(make_data(ants_and_bees, tmp_path, resize="squash").prepare()) == []
    names = {resize: {f.name for f in inspect_data(make_data(ants_and_bees, tmp_path, resize=resize)).findings} for resize in ("crop", "pad")}  # fmt: skip
    assert names["crop"] - names["pad"] == {"elongated"}


def test_a_cut_file_is_a_warning_and_is_kept(ants_and_bees: Path, tmp_path: Path) -> None:
    path = ants_and_bees / "train" / "ants" / "x.jpg"
    make_image(300, 256).save(path, quality=95)
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 20])
    inspection = inspect_data(make_data(ants_and_bees, tmp_path))
    found = {finding.name: finding for finding in inspection.findings}
    assert found["cut_off"].severity == "warning"
    assert found["cut_off"].groups == [["train/ants/x.jpg"]]
    assert "unreadable" not in found
    assert inspection.split_sizes["train"] == 13


def test_dark_counts_of_12_bits_are_no_placeholders_and_an_empty_image_is(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "counts"
    for split in ("train", "val"):
        for name in ("ants", "bees"):
            (root / split / name).mkdir(parents=True)
            for i in range(5):
                smooth = np.asarray(Image.fromarray(rng.random((6, 6))).resize((64, 64), Image.Resampling.BICUBIC))
                Image.fromarray((100 + 900 * smooth.clip(0, 1)).astype(np.uint16)).save(
                    root / split / name / f"{i}.png"
                )
    flat = root / "train" / "ants" / "flat.tif"
    Image.fromarray(np.full((64, 64), 512, np.uint16)).save(flat)
    inspection = inspect_data(make_data(root, tmp_path))
    found = {finding.name: finding for finding in inspection.findings}
    assert found["blank"].groups == [["train/ants/flat.tif"]]
    assert found["deep_grey"].files == 21
    assert not {name for name in found if "duplicates" in name}  # their hashes are of more than a few levels
    assert inspection.preprocess.depth is not None
    assert 95 < inspection.preprocess.depth[0] < 130
    assert 970 < inspection.preprocess.depth[1] <= 1000


def test_the_means_of_signed_counts_are_those_of_the_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            counts = rng.integers(-20000, 10000, (40, 40)).astype(np.int16)
            tifffile.imwrite(tmp_path / "data" / name / f"{i}.tif", counts)
    inspection = inspect_data(make_data(tmp_path / "data", tmp_path, depth="full"))
    for path, details in inspection.scan.image_info.items():
        expected = (tifffile.imread(path).astype(float) + 32768).mean() / 65535
        assert details.mean == pytest.approx((expected,) * 3, abs=1e-3)
