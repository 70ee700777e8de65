"""Hold every command to leaving the data as they were."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from finetune import compare, report
from tests.end_to_end.helpers import Command
from tests.helpers import TINY


def listing(root: Path) -> list[tuple[str, int, int, bytes]]:
    """Everything below a folder: name, time of its last change in ns, mode, content."""
    paths = [root, *sorted(root.rglob("*"))]
    stats = [(path, os.lstat(path)) for path in paths]
    return [(str(p), s.st_mtime_ns, s.st_mode, p.read_bytes() if p.is_file() else b"") for p, s in stats]


@pytest.mark.parametrize(
    "words",
    [
        ("check", "report=true"),
        ("rank", "models=[squeezenet1_1@none]", "data.image_size=32"),
        ("train", *TINY, "report=true", "data.cache_images=disk"),
        ("train", *TINY, "strategy=linear_probe"),
        ("train", "RESUME"),
        ("evaluate", "CKPT", "report=true"),
        ("predict", "CKPT", "source=data", "report=true"),
        ("export", "CKPT", "format=state_dict", "source=data"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_no_command_writes_to_the_data(
    words: tuple[str, ...], photos: Path, best_checkpoint: str, command: Command, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "train" / "cat" / "damaged.jpg").write_bytes(b"no image")
    shutil.copy(next((data / "train" / "cat").glob("*.png")), data / "train" / "dog" / "copy.png")  # of another class
    before = listing(data)
    name, *rest = (best_checkpoint if word == "CKPT" else word for word in words)
    if words[-1] == "RESUME":
        run, _ = command("train", *TINY, f"data.root={data}")
        rest = [f"resume={run}", "trainer.max_epochs=3"]
    root = [] if name in ("predict", "export") or words[-1] == "RESUME" else [f"data.root={data}"]
    folder, code = command(name, *rest, *root)
    assert code in (0, 3)
    assert folder.is_dir()
    if name == "train":
        report.main([str(folder)])
        compare.main([str(folder), "--out", str(tmp_path / "compared")])
    assert listing(data) == before
