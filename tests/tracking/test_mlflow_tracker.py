"""Test `finetune.tracking.mlflow_tracker` against MLflow itself: a database, and a server."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.io.paths import checkpoint_path
from finetune.reporting import summary
from finetune.tracking import mlflow_tracker
from finetune.tracking.mlflow_tracker import MLflowTracker
from tests.tracking.conftest import Server, Train
from tests.tracking.helpers import make_tracked_run

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(client: Any, experiment: str = "finetune") -> dict[str, Any]:
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: run for run in found}


def history_of(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_is_in_the_server_as_in_its_folder(
    train_run: Train, mlflow_server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = train_run("mine", "logger=mlflow", f"logger.tracking_uri={mlflow_server.address}", "seed=3")
    client = client_of(mlflow_server.address)
    run = runs_of(client)["mine"]
    assert run.info.status == "FINISHED"
    parameters = run.data.params
    assert (parameters["model.name"], parameters["seed"], parameters["model.weights"]) == ("squeezenet1_1", "3", "none")
    assert (parameters["ckpt_path"], parameters["report"]) == ("null", "true")
    tags = run.data.tags
    assert (tags["model"], tags["strategy"], tags["data"]) == ("squeezenet1_1", "feature_extract", "photos")
    assert tags["folder"] == str(folder)
    rows = rows_of(folder)
    for name in ("train/loss", "val/acc", "lr/head", "step"):
        assert history_of(client, run, name) == [(int(row["epoch"]), pytest.approx(float(row[name]))) for row in rows]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert run.data.metrics["best/val/acc"] == pytest.approx(metrics["best"]["val/acc"])
    assert run.data.metrics["best/epoch"] == metrics["best"]["epoch"]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"plots", "report.html"}
    assert {file.path for file in client.list_artifacts(run.info.run_id, "plots")} == {
        "plots/confusion_matrix.png", "plots/curves.png", "plots/samples.png",
    }  # fmt: skip
    out = capfd.readouterr().out
    assert out.count("Tracking  ") == 1
    assert f"Tracking  {mlflow_server.address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in out


@pytest.mark.slow
def test_the_logged_model_answers_as_the_checkpoint(
    train_run: Train, mlflow_server: Server, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow
    import pandas as pd

    import finetune

    folder = train_run("with_model", "logger=mlflow", f"logger.tracking_uri={mlflow_server.address}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    run = runs_of(client_of(mlflow_server.address))["with_model"]
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    images = sorted((photos / "val").rglob("*.png"))[::3]
    answers = model.predict([str(path) for path in images])
    classifier = finetune.load(checkpoint_path(folder), device="cpu")
    expected = classifier.probabilities(images).numpy()
    columns = ["probability_cat", "probability_dog", "probability_emu"]
    assert list(answers.columns) == ["label", "confidence", *columns]
    np.testing.assert_allclose(answers[columns].to_numpy(), expected, rtol=1e-5)
    assert list(answers["label"]) == [["cat", "dog", "emu"][i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose(answers["confidence"], expected.max(axis=1), rtol=1e-5)
    as_bytes = model.predict([path.read_bytes() for path in images])
    pd.testing.assert_frame_equal(as_bytes, answers)
    assert str(model.metadata.get_output_schema()).startswith("['label': string (required), 'confidence': double")
    assert model.metadata.flavors["python_function"]["loader_module"] == "finetune.tracking.mlflow_model"
    place = Path(
        mlflow.artifacts.download_artifacts(model.metadata.get_model_info().model_uri, dst_path=str(tmp_path / "d"))
    )
    # nothing in it is code, or pickled; the last is what MLflow's download adds
    assert {p.name for p in place.rglob("*") if p.is_file()} - {"registered_model_meta"} == {
        "MLmodel", "best.ckpt", "conda.yaml", "python_env.yaml", "requirements.txt",
    }  # fmt: skip
    assert (place / "data" / "best.ckpt").read_bytes() == checkpoint_path(folder).read_bytes()


@pytest.mark.slow
def test_without_a_server_there_is_a_database_that_all_runs_share(
    train_run: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_run("a", "logger=mlflow", "logger.log_model=false", "report=false")
    train_run("b", "logger=[csv,mlflow]", "logger.experiment_name=finetune", "logger.log_model=false", "report=false")
    database = f"sqlite:///{tmp_path}/runs/mlflow/mlflow.db"
    assert set(runs_of(client_of(database))) == {"a", "b"}
    assert capfd.readouterr().out.count(f"Tracking  mlflow ui --backend-store-uri {database}\n") == 2
    assert not (tmp_path / "mlruns").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_the_active_run_of_the_process_is_left_alone(train_run: Train, tmp_path: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    train_run("a", "logger=mlflow", "report=false")
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_run(train_run: Train, mlflow_server: Server) -> None:
    words = ["logger=mlflow", f"logger.tracking_uri={mlflow_server.address}", "logger.experiment_name=resumed"]
    first = train_run("first", *words, "trainer.max_epochs=1", "logger.log_model=false", "report=false")
    train_run("second", f"resume={first}", "trainer.max_epochs=3", "report=false")
    client = client_of(mlflow_server.address)
    (run,) = client.search_runs([client.get_experiment_by_name("resumed").experiment_id])
    assert [step for step, _ in history_of(client, run, "val/acc")] == [1, 2, 3]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.params["trainer.max_epochs"] == "1"
    assert run.data.tags["resumed.trainer.max_epochs"] == "3"


@pytest.mark.slow
def test_epochs_that_the_server_missed_are_sent_when_the_run_is_resumed(tmp_path: Path, mlflow_server: Server) -> None:
    tracker = MLflowTracker(tracking_uri=mlflow_server.address, experiment_name="missed")
    assert tracker.start(make_tracked_run(tmp_path / "a")) == 0
    tracker.log_epoch({"epoch": 1, "step": 4, "val/acc": 0.5})
    tracker.log_epoch({"epoch": 2, "step": 8, "val/acc": 0.6})
    again = MLflowTracker(tracking_uri=mlflow_server.address, experiment_name="missed")
    assert again.start(make_tracked_run(tmp_path / "b", resumed=tmp_path / "a")) == 2


@pytest.mark.slow
def test_a_run_that_was_deleted_is_begun_anew(tmp_path: Path, mlflow_server: Server) -> None:
    tracker = MLflowTracker(tracking_uri=mlflow_server.address, experiment_name="deleted")
    tracker.start(make_tracked_run(tmp_path / "a"))
    client = client_of(mlflow_server.address)
    (run,) = client.search_runs([client.get_experiment_by_name("deleted").experiment_id])
    client.delete_run(run.info.run_id)
    assert tracker.start(make_tracked_run(tmp_path / "b", resumed=tmp_path / "a")) == 0
    assert set(runs_of(client, "deleted")) == {"b"}


@pytest.mark.slow
def test_points_of_a_sweep_have_one_parent(
    train_run: Train, tmp_path: Path, mlflow_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_run(
        "ignored", "-m", "logger=mlflow", f"logger.tracking_uri={mlflow_server.address}", "seed=0,1", "report=false",
        "logger.experiment_name=sweep", "logger.log_model=false", f"hydra.sweep.dir={tmp_path / 'night'}",
    )  # fmt: skip
    runs = runs_of(client_of(mlflow_server.address), "sweep")
    assert set(runs) == {"night", "night/0", "night/1"}
    parent = runs["night"].info.run_id
    assert [runs[f"night/{i}"].data.tags["mlflow.parentRunId"] for i in (0, 1)] == [parent, parent]
    assert [runs[f"night/{i}"].data.params["seed"] for i in (0, 1)] == ["0", "1"]


_POINT = """
import sys
from pathlib import Path
from finetune.tracking.mlflow_tracker import MLflowTracker
from finetune.tracking.tracked_run import TrackedRun
sweep, point = Path(sys.argv[1]), sys.argv[2]
(sweep / point).mkdir()
MLflowTracker(tracking_uri=sys.argv[3], experiment_name="parallel").start(TrackedRun(sweep / point, {}, {}, sweep=sweep))
"""


@pytest.mark.slow
def test_points_in_processes_of_their_own_find_the_same_parent(tmp_path: Path, mlflow_server: Server) -> None:
    (tmp_path / "night").mkdir()
    started = [
        subprocess.Popen([sys.executable, "-c", _POINT, tmp_path / "night", str(i), mlflow_server.address])
        for i in range(3)
    ]
    assert [process.wait(300) for process in started] == [0, 0, 0]
    runs = runs_of(client_of(mlflow_server.address), "parallel")
    assert set(runs) == {"night", "night/0", "night/1", "night/2"}
    assert {runs[f"night/{i}"].data.tags["mlflow.parentRunId"] for i in range(3)} == {runs["night"].info.run_id}


@pytest.mark.slow
def test_names_and_values_that_mlflow_refuses_are_made_to_fit(tmp_path: Path, mlflow_server: Server) -> None:
    run = make_tracked_run(tmp_path / "a")
    run.config.update({"data": {"root": "x" * 20_000, "a=b": 1}, **{f"k{i}": i for i in range(250)}})
    tracker = MLflowTracker(tracking_uri=mlflow_server.address, experiment_name="odd")
    tracker.start(run)
    tracker.log_epoch({"epoch": 1, "step": 1, "val/f1 (macro)": 0.5, "val/nan": float("nan")})
    found = runs_of(client_of(mlflow_server.address), "odd")["a"].data
    assert len(found.params["data.root"]) == 6000
    assert (found.params["data.a_b"], found.params["k249"]) == ("1", "249")
    assert found.metrics["val/f1 _macro_"] == 0.5
    assert np.isnan(found.metrics["val/nan"])


def test_a_server_that_is_down_is_said_and_the_run_is_in_its_folder(
    train_run: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = train_run("down", "logger=mlflow", "logger.tracking_uri=http://127.0.0.1:9", "report=false")
    assert len(rows_of(folder)) == 2
    out = " ".join(capfd.readouterr().out.split())
    assert out.count("MLflow: http://127.0.0.1:9 does not answer. The run goes on, and its folder has it all.") == 1
    assert "MLflow has not got all of this run; its folder has." in out


@pytest.mark.slow
def test_a_server_that_goes_down_and_comes_back_gets_the_whole_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    from finetune.tracking.run_logger import RunLogger

    server = Server(tmp_path_factory.mktemp("other_server"))
    server.start()
    try:
        logger = RunLogger(MLflowTracker(tracking_uri=server.address), make_tracked_run(tmp_path / "a"))
        logger.begin([])
        rows = [{"epoch": epoch, "step": epoch, "val/acc": epoch / 10} for epoch in (1, 2, 3)]
        logger.log_epoch(rows[0])
        assert logger._worker.wait(60)
        server.stop()
        logger.log_epoch(rows[1])
        assert not logger._worker.wait(60)
        server.start()
        logger.log_epoch(rows[2])
        logger.end("failed")
        client = client_of(server.address)
        run = runs_of(client)["a"]
        assert history_of(client, run, "val/acc") == [(1, 0.1), (2, 0.2), (3, 0.3)]
        assert run.info.status == "FAILED"
        assert "Retrying" not in capfd.readouterr().err
    finally:
        server.stop()


def test_the_environment_names_the_server_where_the_configuration_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    assert MLflowTracker().uri == "http://host:1"
    assert MLflowTracker(tracking_uri="http://other").uri == "http://other"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert MLflowTracker("here").uri == f"sqlite:///{Path.cwd() / 'here' / 'mlflow.db'}"


def test_a_folder_whose_database_would_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"address of a database ends at a \?; give another folder"):
        MLflowTracker(str(tmp_path / "what?"))
    assert MLflowTracker(str(tmp_path / "my é #1 100%")).uri.endswith("/my é #1 100%/mlflow.db")


def test_the_password_of_a_server_is_kept_nowhere(tmp_path: Path) -> None:
    tracker = MLflowTracker(tracking_uri="http://me:secret@127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"^http://127\.0\.0\.1:9 does not answer$"):
        tracker.start(make_tracked_run(tmp_path / "a"))
    assert "secret" not in tracker.describe()
    database = MLflowTracker(tracking_uri="postgresql://me:secret@host/db")
    assert database.describe() == "mlflow ui --backend-store-uri postgresql://host/db"
    assert database.uri == "postgresql://me:secret@host/db"


@pytest.mark.slow
def test_a_run_whose_results_cannot_be_written_has_failed_in_mlflow_and_no_thread_is_left(
    train_run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.json")

    monkeypatch.setattr(summary, "write_summary", full)
    with pytest.raises(SystemExit, match=r"^2$"):
        train_run("mine", "logger=mlflow", "logger.log_model=false", "trainer.max_epochs=1")
    run = runs_of(client_of(f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}"))["mine"]
    assert run.info.status == "FAILED"
    assert [
        thread.name for thread in threading.enumerate() if thread.name == "tracking-MLflow" and thread.is_alive()
    ] == []


@pytest.mark.slow
def test_settings_of_the_environment_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mlflow_server: Server
) -> None:
    import os

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    MLflowTracker(tracking_uri=mlflow_server.address).start(make_tracked_run(tmp_path / "kept"))
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == mlflow_tracker._DEFAULTS["MLFLOW_HTTP_REQUEST_TIMEOUT"]
