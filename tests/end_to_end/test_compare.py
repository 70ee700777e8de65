"""Run `finetune.compare` on finished runs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import FineTuner, compare
from finetune.reporting import runs
from tests.end_to_end.helpers import Command, read_table


@pytest.fixture
def two(trained: Path, tmp_path: Path) -> list[Path]:
    """Two runs, of which the second has another seed and other predictions."""
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder in folders:
        shutil.copytree(trained, folder)
    config = folders[1] / "config.yaml"
    config.write_text(re.sub("^seed: 0", "seed: 1", config.read_text(), flags=re.MULTILINE))
    found = json.loads((folders[1] / "metrics.json").read_text())
    found["best"]["val/acc"] = 4 / 12
    (folders[1] / "metrics.json").write_text(json.dumps(found))
    predictions = runs.read_run(folders[1]).predictions
    assert predictions is not None
    flat = np.full_like(predictions.probabilities, 1 / 3)
    np.savez(
        folders[1] / "checkpoints" / "best.npz", probabilities=flat, labels=predictions.labels, keys=predictions.keys
    )
    return folders


def test_compare_writes_a_leaderboard_and_a_page(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    compare.main(list(map(str, two)))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "seed=0" in printed
    assert "Careful" not in printed
    assert "fewer correct" in printed
    with (tmp_path / "comparison" / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["rank"], r["run"], r["correct"], r["images"]) for r in rows][1] == ("2", "seed=1", "4", "12")
    assert rows[0]["p"] == ""
    assert float(rows[1]["p"]) <= 1
    page = (tmp_path / "comparison" / "compare.html").read_text()
    assert "<script" not in page
    assert "Means over seeds" in page
    assert page.count("<svg") == 1  # one curve plot: nothing that costs differs


def test_compare_of_a_sweep_lies_in_its_folder(two: list[Path]) -> None:
    compare.main([str(two[0].parent)])
    assert (two[0].parent / "leaderboard.csv").exists()


def test_compare_warns_of_different_validation_images(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = runs.read_run(two[1]).predictions
    assert predictions is not None
    keys = ["val/cat/99.png", *predictions.keys[1:]]
    np.savez(
        two[1] / "checkpoints" / "best.npz",
        probabilities=predictions.probabilities,
        labels=predictions.labels,
        keys=keys,
    )
    compare.main([*map(str, two), "--out", str(tmp_path / "out")])
    assert "different images" in capsys.readouterr().out
    assert "do not compare" in (tmp_path / "out" / "compare.html").read_text()


def test_compare_of_no_run_exits_2(tmp_path: Path, two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        compare.main([str(tmp_path / "nothing")])
    assert stop.value.code == 2
    assert "is not the folder of a finished run" in capsys.readouterr().err
    (two[1] / "metrics.csv").unlink()
    compare.main([*map(str, two), "--out", str(tmp_path / "out")])  # a damaged run is named, the others are compared
    assert "Left out" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main([str(two[1])])
    assert "cannot be read" in capsys.readouterr().err


def test_two_evaluations_of_the_same_images_are_compared_and_runs_beside_them_refused(
    trained: Path, photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    other = FineTuner("squeezenet1_1", ["cat", "dog", "emu"], weights="none", preprocess={"size": 32})
    with torch.no_grad():  # cat, whatever the image
        other.head.get_parameter("weight").zero_()
        other.head.get_parameter("bias").copy_(torch.tensor([1.0, 0.0, 0.0]))
    other.save(tmp_path / "other.ckpt")
    data = f"data.root={photos}/val"
    a, b = (command("evaluate", f"ckpt={ckpt}", data)[0] for ckpt in (trained, tmp_path / "other.ckpt"))
    capsys.readouterr()
    compare.main([str(a), str(b), "--out", "out"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "Accuracy on the same 12 images" in printed
    predicted = {row["path"]: (row["true"], row["label"]) for row in read_table(a / "predictions.csv")}
    expected = {path: (true, label, "cat") for path, (true, label) in predicted.items() if label != "cat"}
    changed = read_table(tmp_path / "out" / "changed.csv")
    assert {row["path"]: (row["true"], row["before"], row["after"]) for row in changed} == expected
    rows = read_table(tmp_path / "out" / "evaluations.csv")
    assert [(row["model"], row["images"]) for row in rows] == [("resnet18", "12"), ("squeezenet1_1", "12")]
    assert rows[1]["correct"] == "4"
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<img") == len(expected)  # evaluation.json says where the images lie
    with pytest.raises(SystemExit) as stop:
        compare.main([str(a), str(trained)])
    assert stop.value.code == 2
    assert "is an evaluation and is compared with evaluations" in capsys.readouterr().err
