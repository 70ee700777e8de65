"""Test `finetune.reporting.runs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.reporting import runs


def test_find_runs_takes_runs_and_the_folders_of_sweeps_each_run_once(tmp_path: Path) -> None:
    for name in ("sweep/0", "sweep/2", "sweep/10", "alone"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").touch()
    (tmp_path / "sweep" / "1").mkdir()  # a point that failed
    found = runs.find_runs([tmp_path / "alone", tmp_path / "sweep", tmp_path / "sweep" / "2"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["alone", "sweep/0", "sweep/2", "sweep/10"]
    with pytest.raises(FileNotFoundError, match=r"1 is not the folder of a finished run"):
        runs.find_runs([tmp_path / "sweep", tmp_path / "sweep" / "1"])
    with pytest.raises(FileNotFoundError) as raised:
        runs.find_runs([tmp_path / "nowhere", tmp_path / "alone", tmp_path / "sweep" / "1", tmp_path / "nowhere"])
    assert [line.split(" is not ")[0] for line in str(raised.value).splitlines()] == [
        str(tmp_path / "nowhere"), str(tmp_path / "sweep" / "1"),
    ]  # fmt: skip


def test_run_read_gives_predictions_in_the_order_of_its_images(trained: Path) -> None:
    run = runs.read_run(trained)
    assert run.predictions is not None
    assert run.predictions.probabilities.shape == (12, 3)
    assert run.predictions.correct.mean() == pytest.approx(run.acc)
    classes = [Path(key).parts[1] for key in run.val_images]
    assert [run.metrics["classes"][i] for i in run.predictions.labels] == classes
