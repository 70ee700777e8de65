"""Test `finetune.reporting.check_page`."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.images.info import ImageInfo
from finetune.images.transforms import Preprocess
from finetune.inspection.finding import Finding
from finetune.inspection.inspect import Inspection
from finetune.inspection.scan import DatasetScan, ScannedImage
from finetune.reporting import check_page


@pytest.fixture
def inspection(tmp_path: Path) -> Inspection:
    """Three images, of which one cannot be read, and a finding of each severity; there are no files."""
    root = tmp_path / "my photos"
    keys = ["train/cat/1.png", "train/dog/1.png", "val/cat/1.png"]
    images = [ScannedImage(key, str(root / key), *key.split("/")[:2]) for key in keys]
    known = ImageInfo(format="PNG", mode="RGB", width=40, height=20, full=True)
    infos = [
        replace(known, mean=(0.2, 0.2, 0.2), square=(0.05, 0.05, 0.05)),
        replace(known, mean=(0.4, 0.4, 0.4), square=(0.25, 0.25, 0.25)),
        ImageInfo(error="the file is empty"),
    ]
    scan = DatasetScan(
        root,
        images,
        {image.path: info for image, info in zip(images, infos, strict=True)},
        classes={"train": ["cat", "dog"], "val": ["cat"]},
    )
    findings = [
        Finding("unreadable", "problem", "1 file cannot be read.", "Remove it.", [["val/cat/1.png"]]),
        Finding("blank", "warning", "Blank images.", "", [[f"{i}.png"] for i in range(15)]),
        Finding(
            "duplicates", "note", "Copies.", "", [[f"copy_number_{name}.png" for name in "abcdef"], ["g.png", "h.png"]]
        ),
    ]
    return Inspection(
        scan, findings, {"train": 2}, Preprocess(), seconds=1.5, data_words=[f"data.root={root}", "data.layout=splits"]
    )


def test_values_count_findings_images_and_channels(inspection: Inspection) -> None:
    values = check_page.check_values(inspection)
    assert (values["problems"], values["warnings"], values["images"]) == (1, 1, 3)
    assert values["verdict"] == "Not yet: 1 problem and 1 warning"
    assert values["counts"] == {"cat": {"train": 1, "val": 0}, "dog": {"train": 1, "val": 0}}
    assert values["errors"] == {"val/cat/1.png": "the file is empty"}
    assert [finding["files"] for finding in values["findings"]] == [1, 15, 8]
    assert values["mean"] == pytest.approx([0.3] * 3)
    assert values["std"] == pytest.approx([(0.15 - 0.3**2) ** 0.5] * 3)


def test_terminal_shows_the_first_files_and_how_many_more_there_are(
    inspection: Inspection, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("out")
    check_page.print_check(inspection, folder, report=True)
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if len(line) > 80 and str(inspection.scan.root) not in line] == []
    text = " ".join(printed.split())
    assert text == (
        f"Images 2 of 2 classes: 2 train, at {inspection.scan.root} "
        "Problem 1 file cannot be read. Remove it. val/cat/1.png: the file is empty "
        "Warning Blank images. 0.png 1.png 2.png and 12 more in check.json "
        "Note Copies. copy_number_a.png = copy_number_b.png = copy_number_c.png = copy_number_d.png = 2 more and 1 more in check.json "
        "Verdict Not yet: 1 problem and 1 warning. 1.5 s; nothing was changed. "
        "See out/check.html out/check.json"
    )


@pytest.mark.parametrize("ready", [False, True])
def test_page_names_the_next_command_with_a_root_that_the_shell_takes(
    ready: bool, inspection: Inspection, tmp_path: Path
) -> None:
    root = inspection.scan.root
    if ready:
        inspection.findings = [finding for finding in inspection.findings if finding.severity != "problem"]
    check = ["python", "-m", "finetune.check", f"data.root={root}"]
    check_page.write_check(inspection, tmp_path / "out", report=True, command=check)
    page = html.unescape((tmp_path / "out" / "check.html").read_text(encoding="utf-8"))
    assert (f"python -m finetune.train data=imagefolder 'data.root={root}' data.layout=splits" in page) == ready
    assert f"python -m finetune.check 'data.root={root}'    # once more" in page
    assert ("val/cat/1.png the file is empty" in page) == (not ready)
    assert "… and 3 more in check.json." in page  # twelve of the fifteen blank images are shown


def test_without_a_report_there_is_no_page(inspection: Inspection, tmp_path: Path) -> None:
    check_page.write_check(inspection, tmp_path / "out", report=False, command=[])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["check.json"]
    assert json.loads((tmp_path / "out" / "check.json").read_text())["splits"] == {"train": 2}
