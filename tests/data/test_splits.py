"""Test `finetune.data.splits`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from finetune import ImageDataModule


def test_fingerprint_follows_the_files_of_a_split(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images({"": {"cat": 5, "dog": 5}})
    table = tmp_path / "table.csv"
    lines = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(root.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *lines]))
    for when, where in enumerate((root, table)):
        data = ImageDataModule(where).prepare()
        before = {name: data.fingerprint(name) for name in ("train", "val")}
        assert len(set(before.values())) == 2
        changed = tmp_path / data.splits["val"].keys[0] if where == table else root / data.splits["val"].keys[0]
        os.utime(changed, (when, when))
        assert data.fingerprint("train") == before["train"]
        assert data.fingerprint("val") != before["val"]
