"""Test `finetune.data.label_exports`: exports as the tools write them, made here by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data.sources import open_source

Found = dict[str, list[tuple[str, str]]]


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


def read(root: Path) -> tuple[Found, list[str]]:
    """The keys and labels of each split, and the notes; every file is there."""
    source = open_source(root)
    splits = source.splits()
    assert all(Path(path).is_file() for part in splits.values() for path in part.reader.paths or [])
    return {name: list(zip(part.keys, part.labels, strict=True)) for name, part in splits.items()}, source.notes


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


# --- Roboflow ----------------------------------------------------------------------------------------------------


def roboflow(root: Path, second_row: str = "b.jpg, 0, 1") -> Path:
    for split in ("train", "valid", "test"):
        images(root / split, "a.jpg", "b.jpg")
        (root / split / "_classes.csv").write_text(f"filename, cat, dog\na.jpg, 1, 0\n{second_row}\n")
    (root / "README.roboflow.txt").write_text("Roboflow")
    return root


def test_roboflow_has_a_table_in_each_split(tmp_path: Path) -> None:
    found, notes = read(roboflow(tmp_path))
    assert found == {
        "train": [("train/a.jpg", "cat"), ("train/b.jpg", "dog")],
        "val": [("valid/a.jpg", "cat"), ("valid/b.jpg", "dog")],
        "test": [("test/a.jpg", "cat"), ("test/b.jpg", "dog")],
    }
    assert notes[0] == f"{tmp_path} is read by its tables, not by its folders."
    assert read(tmp_path / "train")[0] == {"train": [("a.jpg", "cat"), ("b.jpg", "dog")]}


def test_roboflow_folders_of_one_split_are_read_together(tmp_path: Path) -> None:
    roboflow(tmp_path)
    images(tmp_path / "train2", "c.jpg")
    (tmp_path / "train2" / "_classes.csv").write_text("filename, cat, dog\nc.jpg, 0, 1\n")
    for name in ("valid", "test"):  # of train alone, folders without folders in them could be classes
        shutil.rmtree(tmp_path / name)
    found, notes = read(tmp_path)
    assert found == {"train": [("train/a.jpg", "cat"), ("train/b.jpg", "dog"), ("train2/c.jpg", "dog")]}
    assert notes[0] == f"{tmp_path} is read by its tables, not by its folders."


def test_a_roboflow_folder_that_is_no_split_is_said(tmp_path: Path) -> None:
    images(roboflow(tmp_path) / "extra", "c.jpg")
    (tmp_path / "extra" / "_classes.csv").write_text("filename, cat, dog\nc.jpg, 0, 1\n")
    found, notes = read(tmp_path)
    assert {name: len(part) for name, part in found.items()} == {"train": 2, "val": 2, "test": 2}
    assert f"extra in {tmp_path} has a _classes.csv and no name of a split: not read." in notes


def test_roboflow_of_several_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"_classes\.csv, line 3 has 2 labels \(cat, dog\)"):
        read(roboflow(tmp_path, "b.jpg, 1, 1"))


# --- Label Studio ------------------------------------------------------------------------------------------------


def task(image: str, *choices: list[str], **more: Any) -> dict[str, Any]:
    results = [[{"type": "choices", "from_name": "choice", "value": {"choices": labels}}] for labels in choices]
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": result, **more} for result in results]}


def test_label_studio_json(tmp_path: Path) -> None:
    images(tmp_path, "1a2b3c4d-a.jpg", "1a2b3c4d-b.jpg", "1a2b3c4d-c.jpg")
    folder = "/data/upload/1/1a2b3c4d"
    tasks = [
        task(f"{folder}-a.jpg", ["Cat"]),
        task(f"{folder}-b.jpg", ["Dog"], ["Dog"]),  # by two people, who agree
        task(f"{folder}-c.jpg"),
        task(f"{folder}-c.jpg", ["Cat"], was_cancelled=True),
    ]
    found, notes = read(write_json(tmp_path / "project.json", tasks))
    assert found == {"train": [("1a2b3c4d-a.jpg", "Cat"), ("1a2b3c4d-b.jpg", "Dog")]}
    assert "2 of 4 entries of project.json have no annotation: left out." in notes


@pytest.mark.parametrize("choices", [(["Cat", "Dog"],), (["Cat"], ["Dog"])], ids=["at once", "by two people"])
def test_label_studio_with_two_labels_is_refused(choices: Any, tmp_path: Path) -> None:
    path = write_json(tmp_path / "p.json", [task("a.jpg", ["Cat"]), task("b.jpg", *choices)])
    with pytest.raises(ValueError, match=r"p\.json, entry 2 has 2 labels \(Cat, Dog\)"):
        read(path)


def test_label_studio_addresses_are_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "p.json", [task("http://localhost:8080/a.jpg", ["Cat"])])
    with pytest.raises(ValueError, match=r"p\.json, entry 1: http://localhost:8080/a\.jpg is an address"):
        read(path)


def test_label_studio_csv_and_short_json(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "p.csv").write_text(
        "annotation_id,annotator,choice,created_at,id,image,lead_time\n"
        "1,1,Cat,2024-01-01,1,/data/local-files/?d=a.jpg,1.5\n2,1,Dog,2024-01-01,2,/data/local-files/?d=b.jpg,1.5\n"
    )
    expected = {"train": [("a.jpg", "Cat"), ("b.jpg", "Dog")]}
    assert read(tmp_path / "p.csv")[0] == expected
    short = [
        {"id": i, "image": f"/data/upload/1/{n}.jpg", "choice": c}
        for i, (n, c) in enumerate([("a", "Cat"), ("b", "Dog")])
    ]
    assert read(write_json(tmp_path / "short.json", short))[0] == expected


# --- FiftyOne ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [{"a": 1, "b": 0, "c": None}, {"a": "dog", "b": {"label": "cat", "confidence": 0.9}}]
)
def test_fiftyone_json(labels: dict[str, Any], tmp_path: Path) -> None:
    images(tmp_path / "data", "a.jpg", "b.png")
    write_json(tmp_path / "labels.json", {"classes": ["cat", "dog"], "labels": labels})
    expected = {"train": [("data/a.jpg", "dog"), ("data/b.png", "cat")]}
    found, notes = read(tmp_path)
    assert found == expected
    assert ("1 entries of labels.json have no label: left out." in notes) == ("c" in labels)
    assert read(tmp_path / "labels.json")[0] == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [(2, r"entry 2 \(b\): there is no class 2; there are 2"), ([0, 1], r"entry 2 has 2 labels"), ({}, r"neither a number")],
)  # fmt: skip
def test_fiftyone_errors_name_the_entry(target: Any, message: str, tmp_path: Path) -> None:
    images(tmp_path / "data", "a.jpg", "b.png")
    write_json(tmp_path / "labels.json", {"classes": ["cat", "dog"], "labels": {"a": 0, "b": target}})
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_fiftyone_tree_is_a_folder_per_class(tmp_path: Path) -> None:
    images(tmp_path, "cat/000001.jpg", "cat/000002.jpg", "dog/000001.jpg")
    assert read(tmp_path)[0] == {
        "train": [("cat/000001.jpg", "cat"), ("cat/000002.jpg", "cat"), ("dog/000001.jpg", "dog")]
    }


# --- CVAT --------------------------------------------------------------------------------------------------------


def test_cvat_imagenet_txt(tmp_path: Path) -> None:
    images(tmp_path, "train/a b.jpg", "train/c.jpg", "val/d.jpg")
    (tmp_path / "synsets.txt").write_text("cat\nblack dog\n")
    (tmp_path / "train.txt").write_text('"train/a b.jpg" 1\ntrain/c.jpg 0\n')
    (tmp_path / "val.txt").write_text("val/d.jpg 0\n\n")
    assert read(tmp_path)[0] == {
        "train": [("train/a b.jpg", "black dog"), ("train/c.jpg", "cat")],
        "val": [("val/d.jpg", "cat")],
    }
    (tmp_path / "val.txt").write_text("val/d.jpg 0 1\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 1 has 2 labels \(cat, black dog\)"):
        read(tmp_path)
    (tmp_path / "val.txt").write_text("val/d.jpg 2\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 1: there is no class 2; there are 2, from 0 on"):
        read(tmp_path)


def test_cvat_folders_with_the_list_of_classes_are_folders(tmp_path: Path) -> None:
    images(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "synsets.txt").write_text("cat\ndog\n")
    assert read(tmp_path)[0] == {"train": [("cat/1.jpg", "cat"), ("dog/2.jpg", "dog")]}


# --- other .json -------------------------------------------------------------------------------------------------


def test_boxes_and_unknown_forms_are_refused(tmp_path: Path) -> None:
    coco: dict[str, list[int]] = {"images": [], "annotations": [], "categories": []}
    with pytest.raises(ValueError, match=r"c\.json holds boxes or shapes"):
        read(write_json(tmp_path / "c.json", coco))
    with pytest.raises(ValueError, match=r"u\.json is of no form that is read"):
        read(write_json(tmp_path / "u.json", {"a": 1}))
    (tmp_path / "d.json").write_text("[{")
    with pytest.raises(ValueError, match=r"d\.json: this is no JSON"):
        read(tmp_path / "d.json")
