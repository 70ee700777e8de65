"""Test `finetune.inspection.duplicates`."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.inspection.helpers import found_in


def test_find_takes_many_equal_files_at_once(ants_and_bees: Path) -> None:
    for i in range(300):
        shutil.copy(ants_and_bees / "train/ants/0.png", ants_and_bees / f"train/ants/x{i}.png")
    assert [len(g) for g in found_in(ants_and_bees)["duplicates"].groups] == [301]
