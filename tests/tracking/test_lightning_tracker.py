"""Test `finetune.tracking.lightning_tracker` with Loggers of Lightning, named by YAML files of a user's own."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from finetune.tracking.lightning_tracker import LightningTracker
from finetune.tracking.tracker import Results
from tests.tracking.conftest import Train
from tests.tracking.helpers import make_tracked_run


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    (tmp_path / "own" / "logger").mkdir(parents=True)
    text = "_target_: lightning.pytorch.loggers.CSVLogger\nsave_dir: logs\nname: own\nversion: a\n"
    (tmp_path / "own" / "logger" / "mine.yaml").write_text(text)
    return tmp_path / "own"


def test_a_logger_of_the_users_own_gets_what_lightning_logs_and_the_results(
    train_run: Train, own_files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--config-dir", str(own_files), "logger=mine", "logger.version=b", "report=false"]
    folder = train_run("run", *words)
    place = tmp_path / "logs" / "own" / "b"
    with (place / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train/loss", "val/acc"):
        values = [float(row[name]) for row in logged if row.get(name)]
        assert values == [pytest.approx(float(row[name]), rel=1e-5) for row in rows]
    assert any(row.get("best/val/acc") for row in logged)
    assert "model.name: squeezenet1_1" in (place / "hparams.yaml").read_text()
    assert "Tracking  CSVLogger: logs/own/b" in capfd.readouterr().out


def test_it_stands_beside_others(train_run: Train, own_files: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    folder = train_run("run", "--config-dir", str(own_files), "logger=[csv,mine,tensorboard]", "report=false")
    assert (tmp_path / "logs" / "own" / "a" / "metrics.csv").is_file()
    assert list((folder / "tensorboard").glob("events*"))


def test_a_logger_that_cannot_be_made_is_made_when_it_can(tmp_path: Path) -> None:
    attempts: list[int] = []

    def make() -> CSVLogger:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("no connection")
        return CSVLogger(tmp_path, name="own", version="a")

    tracker = LightningTracker("own", make)
    with pytest.raises(OSError, match="no connection"):
        tracker.start(make_tracked_run(tmp_path / "a"))
    assert tracker.experiment is None
    assert tracker.start(make_tracked_run(tmp_path / "a")) is None
    tracker.log_metrics({"loss": 0.5}, 3)
    tracker.log_results(Results({"best/loss": 0.5}, 1))
    tracker.finish("finished")
    with (tmp_path / "own" / "a" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row.get("loss")) for row in rows if row.get("loss")] == [("3", "0.5")]
