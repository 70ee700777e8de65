"""Run `finetune.train` with a time limit."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from finetune.training import time_limit
from tests.end_to_end.helpers import Command, finished, metrics_rows, read_metrics, timeless_rows
from tests.helpers import TINY, Start


@pytest.fixture(autouse=True)
def _short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "FINISH_S", 1.5)


def test_a_run_ends_in_time_with_all_its_files_and_goes_on_when_resumed(
    command: Command, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    folder, code = command(
        "train", *TINY, f"data.root={photos}", "strategy=finetune", "scheduler=cosine", "trainer.max_epochs=5000", "time_limit=4s"
    )  # fmt: skip
    assert (code, time.monotonic() - began < 4) == (0, True)
    found = read_metrics(folder)
    done = len(metrics_rows(folder))
    limit = found["time_limit"]
    assert (limit["seconds"], limit["asked_epochs"]) == (4, 5000)
    assert f"epoch {done} of 5000" in limit["stopped"]
    assert 0 < done < 5000
    assert found["best"]["val/acc"] > 0
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    said = " ".join(capsys.readouterr().out.split())
    assert "Limit of 4 s: " in said
    assert "Note the time limit of 4 s ends the run" in said
    rest, code = command("train", f"resume={folder}", "time_limit=3")
    assert (code, read_metrics(rest)["time_limit"]["seconds"]) == (0, 3)
    rows = metrics_rows(rest)
    assert len(rows) > done
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))


def test_a_limit_that_is_too_short_is_refused_before_the_training(
    command: Command, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, code = command("train", *TINY, f"data.root={photos}", "time_limit=1s")
    assert code == 2
    assert "time_limit=1 seconds are too few: " in capsys.readouterr().err
    assert not (folder / "metrics.csv").exists()


def test_no_alarm_outlasts_a_run_in_which_nothing_was_left_to_train(command: Command, trained: Path) -> None:
    before = signal.getsignal(signal.SIGALRM)
    _, code = command("train", f"resume={trained}", "time_limit=1h")
    assert code == 0
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_comes_before_the_training_does_not_outlast_the_limit(
    command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.training.feature_store.require_constant", lambda *args: time.sleep(60))
    began = time.monotonic()
    _, code = command("train", *TINY, f"data.root={photos}", "time_limit=3s", "paths.cache_dir=empty")
    assert (code, time.monotonic() - began < 5) == (2, True)
    assert "time_limit=3 seconds are too few: " in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["finetune", "feature_extract"])
def test_a_run_that_fits_is_the_same_with_and_without_a_limit(strategy: str, command: Command, photos: Path) -> None:
    words = (*TINY, f"data.root={photos}", f"strategy={strategy}", "data.augment=basic", "scheduler=onecycle")
    without, _ = command("train", *words)
    limited, code = command("train", *words, "time_limit=1h")
    assert code == 0
    assert timeless_rows(limited) == timeless_rows(without)
    assert read_metrics(limited)["time_limit"] == {
        "seconds": 3600, "asked_epochs": 2, "planned_epochs": 2, "stopped": None
    }  # fmt: skip


@pytest.mark.parametrize("word", ["soon", "-5", "0", "10min", "[1]", "true"])
def test_a_wrong_time_limit_is_a_sentence(
    word: str, command: Command, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = command("train", *TINY, f"data.root={photos}", f"time_limit={word}")
    assert code == 2
    assert "time_limit must be a number of seconds, or of hours, minutes and seconds" in capsys.readouterr().err


@pytest.mark.slow
def test_each_point_of_a_sweep_has_the_limit_for_itself(command: Command, photos: Path, tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep", "strategy=finetune"]
    _, code = command("train", *TINY, f"data.root={photos}", "trainer.max_epochs=5000", "time_limit=3s", *words)
    assert code == 0
    for name in ("0", "1"):
        assert read_metrics(tmp_path / "sweep" / name)["time_limit"]["stopped"]


@pytest.mark.slow
def test_processes_stop_at_the_same_batch(start: Start, tmp_path: Path) -> None:
    words = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "strategy=finetune")
    process = start(*words, "trainer.max_epochs=100000", "time_limit=60s", f"hydra.run.dir={tmp_path}/out")
    finished(process, 0)
    found = read_metrics(tmp_path / "out")
    assert found["time_limit"]["stopped"]
    assert found["best"]["val/acc"] > 0
