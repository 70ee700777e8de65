"""Test `finetune.cli.run_folder`."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from finetune.cli import run_folder
from finetune.cli.run_folder import unique_dir


def test_unique_dir_never_gives_a_folder_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tmp_path)
    first = unique_dir(base, "now")
    assert unique_dir(base, "now") == first  # Hydra asks several times
    run_folder.STATE.folders.clear()
    assert unique_dir(base, "now") == f"{base}/now_1"


def test_claim_folder_belongs_to_one_run(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"a": 1})
    run_folder.claim_folder(cfg, tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "a: 1\n"
    with pytest.raises(FileExistsError, match="holds another run"):
        run_folder.claim_folder(cfg, tmp_path / "run")
