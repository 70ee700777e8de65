"""Run `finetune.check` on images made on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.end_to_end.helpers import Command


def report_of(folder: Path) -> dict[str, Any]:
    """check.json"""
    found: dict[str, Any] = json.loads((folder / "check.json").read_text())
    return found


def test_check_writes_what_it_found_and_changes_nothing(
    ants_and_bees: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ants_and_bees / "train/ants/0.png", ants_and_bees / "val/ants/leak.png")
    (ants_and_bees / "train/bees/cut.jpg").write_bytes(b"\xff\xd8\xff")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in ants_and_bees.rglob("*") if p.is_file()}
    folder, code = command("check", f"data.root={ants_and_bees}", "report=true")
    assert code == 0
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in ants_and_bees.rglob("*") if p.is_file()} == before
    found = report_of(folder)
    assert found["problems"] == 2
    assert found["splits"] == {"train": 12, "val": 11}
    assert found["counts"] == {"ants": {"train": 6, "val": 6}, "bees": {"train": 6, "val": 5}}
    assert list(found["errors"]) == ["train/bees/cut.jpg"]
    page = (folder / "check.html").read_text()
    assert page.count("<img ") >= 14
    assert "cannot be read" in page
    printed = capsys.readouterr().out
    assert "train/ants/0.png = val/ants/leak.png" in printed
    assert "train/bees/cut.jpg: is " in printed
    assert "Not yet: 2 problems" in printed
    assert (
        max(len(line) for line in printed.splitlines() if str(folder) not in line and str(ants_and_bees) not in line)
        <= 80
    )


def test_check_says_that_training_would_not_start(ants_and_bees: Path, command: Command) -> None:
    (ants_and_bees / "train" / "cats").mkdir()
    folder, code = command("check", f"data.root={ants_and_bees}")
    assert code == 0
    assert "Training would not start: " in (folder / "check.json").read_text()
    assert not (folder / "check.html").exists()


def test_check_looks_at_a_table_and_at_a_flat_folder(ants_and_bees: Path, command: Command) -> None:
    lines = [f"train/{c}/{i}.png,{c}" for c in ("ants", "bees") for i in range(6)]
    (ants_and_bees / "table.csv").write_text("path,label\n" + "\n".join(lines))
    folder, code = command("check", "data=csv", f"data.root={ants_and_bees / 'table.csv'}")
    assert (code, report_of(folder)["images"]) == (0, 12)
    folder, code = command("check", f"data.root={ants_and_bees / 'train'}")
    assert (code, report_of(folder)["splits"]) == (0, {"train": 10, "val": 2})


def test_check_looks_at_the_classes_that_are_wanted(ants_and_bees: Path, command: Command) -> None:
    shutil.copytree(ants_and_bees / "val" / "ants", ants_and_bees / "val" / "moths")
    folder, _ = command("check", f"data.root={ants_and_bees}", "data.classes=[ants,bees]")
    assert report_of(folder)["problems"] == 0


def test_check_of_a_table_with_a_missing_file_and_one_elsewhere(
    ants_and_bees: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "tables").mkdir()
    paths = [str(p) for p in sorted((ants_and_bees / "train").rglob("*.png"))]
    lines = [f"{path},{Path(path).parent.name}" for path in paths] + [f"../photos/nothing.png,{'ants'}"]
    (tmp_path / "tables" / "t.csv").write_text("path,label\n" + "\n".join(lines))
    folder, code = command("check", "data=csv", f"data.root={tmp_path / 'tables' / 't.csv'}", "report=true")
    assert code == 0
    found = report_of(folder)
    assert found["errors"] == {"../photos/nothing.png": "there is no such file"}
    assert paths[0] in (folder / "check.html").read_text()


def test_the_automatic_split_has_no_leaks_that_check_would_find(ants_and_bees: Path, command: Command) -> None:
    flat = ants_and_bees / "train"
    for path in sorted(flat.rglob("*.png")):
        Image.open(path).resize((50, 50)).save(path.with_name(f"copy_{path.stem}.jpg"))
    folder, _ = command("check", f"data.root={flat}")
    names = {finding["name"]: finding for finding in report_of(folder)["findings"]}
    assert "near_duplicates_across_splits" not in names
    assert names["near_duplicates"]["severity"] == "note"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "data.root is missing"),
        (["data.root=nowhere"], "there is no such folder"),
        (["data=cifar100"], "check looks at folders and tables"),
        (["data.root=.", "phash_threshold=99"], "phash_threshold must be a whole number from 0 to 16"),
        (["data.root=.", "models=resnet18"], "Did you mean model"),
    ],
)
def test_check_refuses_with_a_sentence(
    words: list[str], says: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = command("check", *words)
    assert code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_train_says_what_may_spoil_its_result(
    ants_and_bees: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ants_and_bees / "train/ants/0.png", ants_and_bees / "val/ants/leak.png")
    words = [
        "model=squeezenet1_1",
        "model.weights=none",
        "data=imagefolder",
        f"data.root={ants_and_bees}",
        "data.image_size=32",
    ]
    folder, code = command("train", *words, "trainer=cpu", "trainer.max_epochs=1")
    assert code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Problem A leak: 1 image is in more than one split" in printed
    assert f"python -m finetune.check data.root={ants_and_bees}" in printed
    names = [f["name"] for f in json.loads((folder / "metrics.json").read_text())["findings"]]
    assert names == ["duplicates_across_splits"]


@pytest.mark.real
def test_real_check_names_the_placeholder(shared: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    folder, code = command("check", f"data.root={shared / 'data' / 'hymenoptera_data'}")
    assert code == 0
    found = report_of(folder)
    assert (found["problems"], found["warnings"], found["images"]) == (0, 0, 397)
    assert "train/ants/imageNotFound.gif" in capsys.readouterr().out
