"""The check of a data set: each finding with files made on the spot, and the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from finetune.images import info
from finetune.images.transforms import Preprocess
from finetune.inspection import checks, scan
from finetune.inspection.checks import run_checks
from finetune.inspection.finding import Finding

Command = Callable[..., tuple[Path, int]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, 6 training and 5 validation images each, all different."""
    seeds = iter(range(100))
    for split, count in (("train", 6), ("val", 5)):
        for name in ("ants", "bees"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(next(seeds), 64).save(folder / f"{i}.png")
    return tmp_path / "photos"


def found_in(root: Path, preprocess: Preprocess | None = None) -> dict[str, Finding]:
    """Findings by name."""
    scanned = scan.scan_folder(root)
    scanned.image_info = info.scan_images([image.path for image in scanned.images], full=True)
    return {f.name: f for f in run_checks(scanned, preprocess)}


def test_find_has_nothing_to_say_of_good_data(root: Path) -> None:
    assert found_in(root) == {}


def _copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / source, root / target)


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def _save(name: str, image: Image.Image, **options: object) -> Callable[[Path], object]:
    return lambda root: image.save(root / name, **options)  # type: ignore[arg-type]


def _many(root: Path) -> None:
    for i in range(60):
        picture(200 + i, 64).save(root / f"train/ants/x{i}.png")


def _nest(root: Path) -> None:
    (root / "train/ants/in").mkdir()
    picture(300).save(root / "train/ants/in/x.png")


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[info.ORIENTATION] = 3
    return exif


DEEP = Image.fromarray((np.random.default_rng(0).random((40, 40)) * 65535).astype(np.uint16))
CASES = {
    "unreadable": ("problem", _write("train/ants/x.jpg", b"<html>"), ["train/ants/x.jpg"]),
    "not_read": ("warning", _write("train/ants/x.gif", b"GIF89a"), ["train/ants/x.gif"]),
    "hidden": ("note", _write("train/ants/._x.jpg", b"x"), ["train/ants/._x.jpg"]),
    "duplicates_across_splits": ("problem", _copy("train/ants/0.png", "val/ants/x.png"), ["train/ants/0.png", "val/ants/x.png"]),
    "duplicates_across_classes": ("problem", _copy("train/ants/0.png", "train/bees/x.png"), ["train/ants/0.png", "train/bees/x.png"]),
    "duplicates": ("note", _copy("train/ants/0.png", "train/ants/x.png"), ["train/ants/0.png", "train/ants/x.png"]),
    "near_duplicates_across_splits": ("warning", _save("val/ants/x.jpg", picture(0, 50)), ["train/ants/0.png", "val/ants/x.jpg"]),
    "near_duplicates_across_classes": ("warning", _save("train/bees/x.jpg", picture(0, 50)), ["train/ants/0.png", "train/bees/x.jpg"]),
    "near_duplicates": ("note", _save("train/ants/x.jpg", picture(0, 50)), ["train/ants/0.png", "train/ants/x.jpg"]),
    "empty_class": ("problem", lambda root: (root / "train" / "cats").mkdir(), []),
    "unknown_class": ("problem", lambda root: shutil.copytree(root / "val" / "ants", root / "val" / "moths"), []),
    "missing_class": ("warning", lambda root: shutil.rmtree(root / "val" / "bees"), []),
    "few": ("warning", lambda root: [(root / "train" / "bees" / f"{i}.png").unlink() for i in (1, 2)], []),
    "few_val": ("warning", lambda root: (root / "val" / "bees" / "1.png").unlink(), []),
    "imbalance": ("warning", _many, []),
    "spelling": ("warning", lambda root: (root / "val" / "ants").rename(root / "val" / "Ants"), []),
    "folders_not_read": ("warning", lambda root: (root / "more").mkdir(), []),
    "nested": ("note", _nest, ["train/ants/in/x.png"]),
    "wrong_root": ("problem", lambda root: [root.rename(root.parent / "inner"), root.mkdir(), (root.parent / "inner").rename(root / "inner")], []),
    "blank": ("warning", _save("train/ants/x.png", Image.new("RGB", (64, 64), (250, 250, 250))), ["train/ants/x.png"]),
    "grey": ("note", _save("train/ants/x.png", picture(300).convert("L")), ["train/ants/x.png"]),
    "deep_grey": ("note", _save("train/ants/x.png", DEEP), ["train/ants/x.png"]),
    "cmyk": ("note", _save("train/ants/x.jpg", picture(300).convert("CMYK")), ["train/ants/x.jpg"]),
    "palette": ("note", _save("train/ants/x.png", picture(300).convert("P")), ["train/ants/x.png"]),
    "alpha": ("note", _save("train/ants/x.png", picture(300).convert("RGBA")), ["train/ants/x.png"]),
    "rotated": ("note", _save("train/ants/x.jpg", picture(300), exif=_turned()), ["train/ants/x.jpg"]),
    "animated": ("note", _save("train/ants/x.webp", picture(300), save_all=True, append_images=[picture(301)]), ["train/ants/x.webp"]),
}  # fmt: skip
"""Finding -> its severity, what brings it about, and the files that it names."""


@pytest.mark.parametrize("name", CASES)
def test_find_names(name: str, root: Path) -> None:
    if name.startswith("near"):
        pytest.importorskip("imagehash")
    severity, bring_about, files = CASES[name]
    bring_about(root)
    found = found_in(root)
    assert name in found, list(found)
    assert found[name].severity == severity
    assert sorted(key for group in found[name].groups for key in group) == files
    assert found[name].message.endswith((".", ")"))
    # nothing else is alarmed, but for what follows from it
    follows = {"unknown_class": {"duplicates_across_classes"}, "spelling": {"unknown_class", "missing_class"}}
    follows |= {"wrong_root": {"one_class", "nested", "duplicates_across_classes"}, "empty_class": {"missing_class"}}
    graver = {f.name for f in found.values() if f.severity != "note"} - {name} - follows.get(name, set())
    assert graver == set()


def test_find_judges_size_and_brightness_by_the_preprocessing(root: Path) -> None:
    assert {"tiny", "unlike_the_weights"} & set(found_in(root)) == set()
    small = found_in(root, Preprocess())
    assert small["tiny"].files == 22
    assert small["tiny"].severity == "warning"
    assert "tiny" not in found_in(root, Preprocess(size=64, resize=72))
    dark = found_in(root, Preprocess(mean=(0.02, 0.02, 0.02), std=(0.2, 0.2, 0.2)))
    assert "mean 0.49/0.49/0.50" in dark["unlike_the_weights"].message


def test_find_takes_many_equal_files_at_once(root: Path) -> None:
    for i in range(300):
        shutil.copy(root / "train/ants/0.png", root / f"train/ants/x{i}.png")
    assert [len(g) for g in found_in(root)["duplicates"].groups] == [301]


def test_uncertainty_gives_wilsons_interval() -> None:
    found = checks.validation_uncertainty(153)
    assert "84.5% and 94.0%" in found.message
    assert "above 97.6%" in found.message
    assert checks.validation_uncertainty(20).severity == "warning"
    assert "too few to evaluate on" in checks.validation_uncertainty(12).message


def test_uncertainty_of_many_images_is_a_note() -> None:
    assert checks.validation_uncertainty(10_000).severity == "note"


# --- the command -------------------------------------------------------------------------------------------------


def report_of(folder: Path) -> dict[str, object]:
    """check.json"""
    found: dict[str, object] = json.loads((folder / "check.json").read_text())
    return found


def test_check_writes_what_it_found_and_changes_nothing(
    root: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(root / "train/ants/0.png", root / "val/ants/leak.png")
    (root / "train/bees/cut.jpg").write_bytes(b"\xff\xd8\xff")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}
    folder, code = command("check", f"data.root={root}", "report=true")
    assert code == 0
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()} == before
    found = report_of(folder)
    assert found["problems"] == 2
    assert found["splits"] == {"train": 12, "val": 11}
    assert found["counts"] == {"ants": {"train": 6, "val": 6}, "bees": {"train": 6, "val": 5}}
    assert list(found["errors"]) == ["train/bees/cut.jpg"]  # type: ignore[call-overload]
    page = (folder / "check.html").read_text()
    assert page.count("<img ") >= 14
    assert "cannot be read" in page
    printed = capsys.readouterr().out
    assert "train/ants/0.png = val/ants/leak.png" in printed
    assert "train/bees/cut.jpg: is " in printed
    assert "Not yet: 2 problems" in printed
    assert max(len(line) for line in printed.splitlines() if str(folder) not in line and str(root) not in line) <= 80


def test_check_says_that_training_would_not_start(root: Path, command: Command) -> None:
    (root / "train" / "cats").mkdir()
    folder, code = command("check", f"data.root={root}")
    assert code == 0
    assert "Training would not start: " in (folder / "check.json").read_text()
    assert not (folder / "check.html").exists()


def test_check_looks_at_a_table_and_at_a_flat_folder(root: Path, command: Command) -> None:
    lines = [f"train/{c}/{i}.png,{c}" for c in ("ants", "bees") for i in range(6)]
    (root / "table.csv").write_text("path,label\n" + "\n".join(lines))
    folder, code = command("check", "data=csv", f"data.root={root / 'table.csv'}")
    assert (code, report_of(folder)["images"]) == (0, 12)
    folder, code = command("check", f"data.root={root / 'train'}")
    assert (code, report_of(folder)["splits"]) == (0, {"train": 10, "val": 2})


def test_check_looks_at_the_classes_that_are_wanted(root: Path, command: Command) -> None:
    shutil.copytree(root / "val" / "ants", root / "val" / "moths")
    folder, _ = command("check", f"data.root={root}", "data.classes=[ants,bees]")
    assert report_of(folder)["problems"] == 0


def test_check_of_a_table_with_a_missing_file_and_one_elsewhere(root: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "tables").mkdir()
    paths = [str(p) for p in sorted((root / "train").rglob("*.png"))]
    lines = [f"{path},{Path(path).parent.name}" for path in paths] + [f"../photos/nothing.png,{'ants'}"]
    (tmp_path / "tables" / "t.csv").write_text("path,label\n" + "\n".join(lines))
    folder, code = command("check", "data=csv", f"data.root={tmp_path / 'tables' / 't.csv'}", "report=true")
    assert code == 0
    found = report_of(folder)
    assert found["errors"] == {"../photos/nothing.png": "there is no such file"}
    assert paths[0] in (folder / "check.html").read_text()


def test_survey_follows_links_as_training_does(root: Path) -> None:
    (root / "train" / "back").symlink_to(root.parent)
    (root / "train" / "wasps").symlink_to(root / "train" / "bees")
    counts = scan.scan_folder(root).counts()
    assert {name: n["train"] for name, n in counts.items()} == {"ants": 6, "bees": 6, "wasps": 6}


def test_check_finds_leaks_into_what_training_would_hold_out(root: Path, command: Command) -> None:
    pytest.importorskip("imagehash")
    flat = root / "train"
    for path in sorted(flat.rglob("*.png")):
        Image.open(path).resize((50, 50)).save(path.with_name(f"copy_{path.stem}.jpg"))
    folder, _ = command("check", f"data.root={flat}")
    assert "near_duplicates_across_splits" in (folder / "check.json").read_text()


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


def test_train_says_what_may_spoil_its_result(root: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(root / "train/ants/0.png", root / "val/ants/leak.png")
    words = ["model=squeezenet1_1", "model.weights=none", "data=imagefolder", f"data.root={root}", "data.image_size=32"]
    folder, code = command("train", *words, "trainer=cpu", "trainer.max_epochs=1")
    assert code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Problem A leak: 1 image is in more than one split" in printed
    assert f"python -m finetune.check data.root={root}" in printed
    names = [f["name"] for f in json.loads((folder / "metrics.json").read_text())["findings"]]
    assert names == ["duplicates_across_splits"]


@pytest.mark.real
def test_real_check_names_the_placeholder(shared: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    folder, code = command("check", f"data.root={shared / 'data' / 'hymenoptera_data'}")
    assert code == 0
    found = report_of(folder)
    assert (found["problems"], found["warnings"], found["images"]) == (0, 1, 397)
    assert "train/ants/imageNotFound.gif" in capsys.readouterr().out
