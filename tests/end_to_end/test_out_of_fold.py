"""Train on all images, with the figure of a cross-validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.io.paths import CONF
from finetune.reporting.runs import read_run


@pytest.mark.skipif(not (CONF / "strategy" / "linear_probe.yaml").is_file(), reason="there is no strategy that solves")
def test_a_solved_head_of_all_images_has_the_accuracy_of_its_folds(
    run_train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_train("strategy=linear_probe", "eval=kfold", "report=true")
    out, run = " ".join(capsys.readouterr().out.split()), read_run(folder)
    found = json.loads((folder / "metrics.json").read_text())
    assert (found["eval"], found["n_train"], found["n_val"], found["best_epoch_optimism"]) == ("kfold", 36, 0, 0)
    assert run.predictions is not None
    correct = int(run.predictions.correct.sum())
    assert found["best"]["val/acc"] == pytest.approx(correct / 36)
    assert f"Folds val/acc {correct / 36:.4f}, {correct} of 36 correct (95 %: " in out
    assert f"{correct} of 36 correct, {correct / 36:.4f}" in out  # where the head is solved
    assert sorted(run.predictions.keys) == sorted(run.val_images)
    assert len(run.val_images) == 36
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "By cross-validation: each image was predicted by a head that had not seen it." in page
    assert "Training images, out of fold" in page
    assert page.count("data:image/jpeg") > 8  # they are found
    assert (folder / "checkpoints" / "best.ckpt").is_file()
