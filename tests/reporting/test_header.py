"""Test `finetune.reporting.header`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from finetune import ImageDataModule
from finetune.inspection.finding import Finding
from finetune.reporting import header


def test_data_lines_count_the_images_and_name_eight_classes(make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {f"class{i}": i + 1 for i in range(10)}, "val": {"class3": 2}})
    (root / "train" / "class1" / "cut.png").write_bytes(b"no")
    text = "\n".join(header.data_lines(ImageDataModule(root, num_workers=0).prepare()))
    assert [line for line in text.splitlines() if len(line) > 80 and str(root) not in line] == []
    assert max(len(line) - len(str(root)) for line in text.splitlines() if str(root) in line) < 45
    lines = " ".join(text.split())
    assert f"Data {root} - 55 train, 2 val images" in lines
    assert "Classes 10, with training images: class0 1, class1 2, " in lines
    assert "class7 8, ... 2 more" in lines
    assert "Left out 1 unreadable files (bad_files.csv lists them):" in lines
    assert f"{root}/train/class1/cut.png: is not " in lines


def test_finding_lines_end_with_a_command_that_the_shell_takes(tmp_path: Path) -> None:
    root = tmp_path / "my photos; $(rm)"
    data = ImageDataModule(root, group=r"(patient\d+)_", columns={"path": "my file"})
    assert header.finding_lines([], data) == []
    found = [Finding("blank", "warning", "Two images are blank.")]
    lines = header.finding_lines(found, data)
    assert lines[0] == "Warning   Two images are blank."
    command = lines[1].strip().removeprefix("see them: ")
    assert shlex.split(command) == [
        "python", "-m", "finetune.check", f"data.root={root}", "data.columns={path:'my file'}", r"data.group=(patient\d+)_",
    ]  # fmt: skip
