"""Test `finetune.tracking.wandb_tracker` on the files that W&B writes offline."""

from __future__ import annotations

import json
import time
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from finetune.tracking.tracker import Results
from finetune.tracking.wandb_tracker import WandbTracker
from tests.tracking.conftest import Train
from tests.tracking.helpers import free_port, make_tracked_run, web_server
from tests.tracking.test_mlflow_tracker import rows_of

wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")

KEY = "a" * 40


def records_of(file: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format, with a header of 7 bytes, and a message of protobuf each."""
    messages = import_module("wandb.proto.wandb_internal_pb2")
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    records, position, parts = [], 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind, data = content[position + 6], content[position + 7 : position + 7 + length]
        assert int.from_bytes(content[position : position + 4], "little") == zlib.crc32(bytes([kind]) + data)
        position += 7 + length
        parts += data
        if kind in (1, 4):  # whole, or the last part
            record = messages.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def runs_in(folder: Path) -> list[list[Any]]:
    """The records of each run in a folder, when W&B's own process has written them all: a moment after its end."""
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        end = time.monotonic() + 20
        while not of_kind(records_of(file), "exit"):
            assert time.monotonic() < end, file
            time.sleep(0.05)
        found.append(records_of(file))
    return found


def of_kind(records: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def values_of(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history_of(records: list[Any], name: str) -> list[Any]:
    rows = [values_of(record.item) for record in of_kind(records, "history")]
    return [(row["epoch"], row[name]) for row in rows if name in row]


def summary_of(records: list[Any]) -> dict[str, Any]:
    return {k: v for record in of_kind(records, "summary") for k, v in values_of(record.update).items()}


def test_a_run_without_a_key_is_in_files_as_in_its_folder(
    train_run: Train, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = train_run("mine", "logger=wandb", "seed=3", "logger.project=pets", "+logger.notes=first try")
    (records,) = runs_in(folder)
    run = of_kind(records, "run")[0]
    assert (run.project, run.display_name, run.notes) == ("pets", "mine", "first try")
    assert set(run.tags) == {"squeezenet1_1", "feature_extract", "photos"}
    config = values_of(run.config.update)
    assert (config["model"]["name"], config["seed"]) == ("squeezenet1_1", 3)
    assert "logger" not in config
    rows = rows_of(folder)
    for name in ("train/loss", "val/acc", "lr/head", "step"):
        assert history_of(records, name) == [(int(row["epoch"]), pytest.approx(float(row[name]))) for row in rows]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert summary_of(records)["best/val/acc"] == pytest.approx(metrics["best"]["val/acc"])
    pictures = {path.name.split("_2_")[0] for path in folder.glob("wandb/offline-run-*/files/media/images/plots/*.png")}
    assert pictures == {"confusion_matrix", "curves", "samples"}
    (page,) = folder.glob("wandb/offline-run-*/files/media/html/report*.html")
    assert page.read_text() == (folder / "report.html").read_text()
    (artifact,) = of_kind(records, "artifact")
    assert (artifact.type, set(artifact.aliases)) == ("model", {"best", "latest"})
    (entry,) = artifact.manifest.contents
    assert (entry.path, entry.size) == ("best.ckpt", (folder / "checkpoints" / "best.ckpt").stat().st_size)
    assert [record.exit_code for record in of_kind(records, "exit")] == [0]
    out = capfd.readouterr()
    (line,) = [line for line in out.out.splitlines() if line.startswith("Tracking")]
    assert (
        line
        == f"Tracking  wandb sync {next(folder.glob('wandb/offline-run-*'))}  (offline, as there is no API key (wandb login))"
    )
    assert "wandb" not in out.err


@pytest.mark.slow
def test_each_point_of_a_sweep_is_a_run_of_one_group(train_run: Train, tmp_path: Path) -> None:
    words = ["logger=wandb", "seed=0,1", "report=false", "logger.log_model=false"]
    train_run("ignored", "-m", *words, f"hydra.sweep.dir={tmp_path / 'night'}")
    (first,), (second,) = runs_in(tmp_path / "night" / "0"), runs_in(tmp_path / "night" / "1")
    runs = [of_kind(records, "run")[0] for records in (first, second)]
    assert [run.display_name for run in runs] == ["night/0", "night/1"]
    assert [run.run_group for run in runs] == ["night", "night"]
    assert runs[0].run_id != runs[1].run_id
    assert [len(history_of(records, "val/acc")) for records in (first, second)] == [2, 2]
    assert wandb.run is None


def test_a_resumed_run_has_the_same_id_and_the_epochs_to_come(train_run: Train) -> None:
    words = ["logger=wandb", "logger.log_model=false", "report=false"]
    first = train_run("first", *words, "trainer.max_epochs=1")
    second = train_run("second", f"resume={first}", "trainer.max_epochs=3", "report=false")
    (before,), (after,) = runs_in(first), runs_in(second)
    assert of_kind(before, "run")[0].run_id == of_kind(after, "run")[0].run_id
    assert [epoch for epoch, _ in history_of(before, "val/acc")] == [1]
    assert [epoch for epoch, _ in history_of(after, "val/acc")] == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("status", [None, 404])
def test_without_a_connection_that_works_the_run_is_kept_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with web_server(status or 200) as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address if status else f"http://127.0.0.1:{free_port()}")
        wandb.teardown()
        tracker = WandbTracker(str(tmp_path))
        assert tracker.start(make_tracked_run(tmp_path / "a")) == 0
        tracker.log_epoch({"epoch": 1, "step": 2, "val/acc": 0.5})
        tracker.log_results(Results({"best/val/acc": 0.5}, 1))
        tracker.finish("stopped")
    wandb.teardown()
    (records,) = runs_in(tmp_path)
    assert history_of(records, "val/acc") == [(1, 0.5)]
    assert [record.exit_code for record in of_kind(records, "exit")] == [130]
    assert ("does not answer" in tracker.describe()) == (status is None)
    assert ("failed" in tracker.describe()) == (status is not None)


def test_an_option_that_wandb_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no key of logger\.wandb 'notess'. The nearest (is|are) notes"):
        WandbTracker(str(tmp_path), notess="x")


def test_metrics_of_steps_lie_over_the_steps(tmp_path: Path) -> None:
    tracker = WandbTracker(str(tmp_path), offline=True)
    tracker.start(make_tracked_run(tmp_path / "a"))
    assert tracker.experiment.id
    tracker.log_metrics({"lr-SGD": 0.1}, 7)
    tracker.log_epoch({"epoch": 1, "step": 9, "val/acc": 0.5})
    tracker.finish("failed")
    (records,) = runs_in(tmp_path)
    steps = {metric.name: metric.step_metric for metric in of_kind(records, "metric")}
    assert (steps["lr-SGD"], steps["val/acc"]) == ("step", "epoch")
    assert values_of(of_kind(records, "history")[0].item)["step"] == 7
    assert "as was asked for" in tracker.describe()


def test_the_mode_of_the_environment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    tracker = WandbTracker(str(tmp_path))
    tracker.start(make_tracked_run(tmp_path / "a"))
    tracker.finish("finished")
    assert tracker.describe().endswith("(offline)")
    monkeypatch.delenv("WANDB_MODE")
    wandb.teardown()
