"""Test `finetune.images.similarity`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from finetune.images.info import read_info, scan_images
from finetune.images.similarity import connected_groups, first_connected, near_pairs, nearest_distances, perceptual_hash
from tests.helpers import make_image


@pytest.mark.parametrize("pairs", [0, 10, 40, 200])
def test_connected_groups_are_those_of_spreading_a_colour(pairs: int) -> None:
    rng = random.Random(pairs)
    edges = [(rng.randrange(60), rng.randrange(60)) for _ in range(pairs)]
    colour = list(range(60))
    for _ in range(60):  # until the smallest number has reached all that it is connected with
        for a, b in edges:
            colour[a] = colour[b] = min(colour[a], colour[b])
    expected = [[i for i in range(60) if colour[i] == c] for c in sorted(set(colour))]
    assert connected_groups(60, edges) == [group for group in expected if len(group) > 1]


def test_near_pairs_of_equal_hashes_are_all_pairs_once() -> None:
    hashes = ["0f" * 8] * 150 + ["f0" * 8]  # more than are compared at a time; the last differs in all bits
    found = list(near_pairs(hashes, 6))
    assert len(found) == len(set(found)) == 150 * 149 // 2
    assert all(i < j < 150 for i, j in found)
    assert len(list(near_pairs(hashes, 0))) == 150 * 149 // 2


def test_near_pairs_finds_copies_of_other_size_and_quality_only(tmp_path: Path) -> None:
    for i in range(12):
        make_image(i).save(tmp_path / f"{i:02d}.png")
    make_image(3).resize((61, 61)).save(tmp_path / "copy.jpg", quality=50)
    paths = [str(p) for p in sorted(tmp_path.iterdir())]
    found = scan_images(paths, full=True)
    pairs = list(near_pairs([found[p].phash or "" for p in paths], most=6))
    assert [(Path(paths[a]).name, Path(paths[b]).name) for a, b in pairs] == [("03.png", "copy.jpg")]


@pytest.mark.parametrize("most", [0, 1, 6, 16])
def test_near_pairs_are_those_of_comparing_all(most: int) -> None:
    rng = random.Random(0)
    values = [rng.getrandbits(64) for _ in range(60)]
    for value in values[:40]:  # some that differ in 0 to 20 bits
        for bit in rng.sample(range(64), rng.randrange(21)):
            value ^= 1 << bit
        values.append(value)
    pairs = [(i, j) for j in range(100) for i in range(j) if (values[i] ^ values[j]).bit_count() <= most]
    found = list(near_pairs([f"{v:016x}" for v in values], most))
    assert sorted(found) == sorted(pairs)
    assert len(pairs) > 0


def test_connected_joins_chains() -> None:
    assert connected_groups(6, [(0, 1), (4, 1), (2, 3)]) == [[0, 1, 4], [2, 3]]
    assert first_connected(6, [(0, 1), (4, 1), (2, 3)]) == [0, 0, 2, 2, 0, 5]


def test_the_perceptual_hash_is_that_of_imagehash() -> None:
    imagehash = pytest.importorskip("imagehash")
    rng = np.random.default_rng(0)
    for side in (20, 32, 61):
        for _ in range(10):
            noise = Image.fromarray(rng.integers(0, 256, (side, side + 7, 3), np.uint8))
            for image in (noise, make_image(int(rng.integers(1000)), 5 * side)):
                assert perceptual_hash(image) == str(imagehash.phash(image))


def test_an_image_that_shows_nothing_has_no_perceptual_hash_and_rounding_decides_no_bit() -> None:
    assert perceptual_hash(Image.new("RGB", (40, 30), (200, 10, 0))) is None
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, 16:48] = 200  # symmetric: most frequencies are nothing but rounding
    bits = int(perceptual_hash(Image.fromarray(stripes)) or "0", 16)
    assert bits == 1 << 63 | 1 << 57  # of sin(3 pi k / 4) - sin(pi k / 4), above 0 for k = 6, and of the mean


def test_the_hash_of_a_jpeg_file_is_the_same_whether_every_pixel_was_read_or_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    choices: list[dict[str, Any]] = [{}, {"quality": 20}, {"exif": exif}, {"progressive": True}]
    for i, options in enumerate(choices):
        path = tmp_path / f"{i}.jpg"
        make_image(i, 700).save(path, **options)
        reduced = read_info(str(path)).phash
        assert reduced is not None
        assert reduced == read_info(str(path), full=True).phash
        upright = perceptual_hash(ImageOps.exif_transpose(Image.open(path)))
        assert (int(reduced, 16) ^ int(upright or "0", 16)).bit_count() <= 4


@pytest.mark.parametrize("most", [0, 1, 6, 16])
def test_nearest_distances_are_those_of_comparing_all(most: int) -> None:
    rng = random.Random(most)
    others = [rng.getrandbits(64) for _ in range(80)]
    own = [rng.getrandbits(64) for _ in range(20)]
    for value in others[:60]:
        for bit in rng.sample(range(64), rng.randrange(20)):
            value ^= 1 << bit
        own.append(value)
    expected = [min((value ^ other).bit_count() for other in others) for value in own]
    found = nearest_distances([f"{value:016x}" for value in own], np.array(others + others[:5], dtype=np.uint64), most)
    assert found == [bits if bits <= most else None for bits in expected]
    assert nearest_distances([], np.array(others, dtype=np.uint64), most) == []
    assert nearest_distances(["0" * 16], np.array([], dtype=np.uint64), most) == [None]
