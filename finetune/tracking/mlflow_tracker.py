"""Record a run with MLflow: in a database of the project, or on a tracking server."""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from finetune.runtime.passwords import without_password
from finetune.tracking import mlflow_model
from finetune.tracking.addresses import is_address, is_answering
from finetune.tracking.tracked_run import TrackedRun, keep_ids, read_ids, sweep_lock
from finetune.tracking.tracker import FAILED, FINISHED, STOPPED, Results, Tracker, numbers

MODEL_NAME = "model"

_STATUS = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}

_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the next epoch tries again
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it was printed when the run began
}
"""Of MLflow's own settings, where the environment does not say otherwise."""


class MLflowTracker(Tracker):
    """Speaks to MLflow through its client, and leaves the process's own active run alone."""

    label = "MLflow"

    def __init__(
        self,
        save_dir: str = "runs/mlflow",
        tracking_uri: str | None = None,
        experiment_name: str = "finetune",
        log_model: bool = True,
    ) -> None:
        """Say where the run is recorded.

        Args:
            save_dir: folder of the database mlflow.db and of the artifacts, which the runs of a project share.
            tracking_uri: of a server or a database; None is MLFLOW_TRACKING_URI of the environment, then the folder.
            experiment_name: is made where it is missing.
            log_model: whether best.ckpt is logged as a model.

        Raises:
            ValueError: the database would lie elsewhere than in the folder.
        """
        self.folder = Path(save_dir).expanduser().absolute()
        given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or f"sqlite:///{self.folder / 'mlflow.db'}"
        self._place = without_password(self.uri)
        self.is_local = given is None
        if self.is_local and "?" in str(self.folder):
            raise ValueError(
                f"logger.mlflow.save_dir={self.folder}: MLflow's address of a database ends at a ?; give another folder."
            )
        self.experiment_name, self.log_model = experiment_name, log_model
        self._client: Any = None
        self._experiment_id = self._run_id = ""

    def is_reachable(self) -> bool:
        """Return whether the server answers; a database does."""
        return not is_address(self.uri) or is_answering(self.uri, "/health")

    # --- the beginning -----------------------------------------------------------------------------------------

    def start(self, run: TrackedRun) -> int | None:
        """Make the run, or find the one that it goes on with.

        Raises:
            ConnectionError: the server does not answer.
        """
        if not self.is_reachable():  # asked here, because MLflow itself takes minutes to give up
            raise ConnectionError(f"{self._place} does not answer")
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each attempt, in any thread
        with _fewer_lines():
            self._client = self._connect()
            self._experiment_id = self._find_experiment()
            earlier = self._find_run(run)
            self._run_id = earlier.info.run_id if earlier else self._make_run(run)
        run.keep_ids("mlflow", {"tracking_uri": self._place, "run_id": self._run_id})
        self._log_parameters(run, {} if earlier is None else earlier.data.params)
        return 0 if earlier is None else int(earlier.data.metrics.get("epoch", 0))

    def _connect(self) -> Any:
        from mlflow import MlflowClient

        if not self.is_local:
            return MlflowClient(tracking_uri=self.uri)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".mlflow.lock"):  # two that make the tables at once would be in each other's way
            client = MlflowClient(tracking_uri=self.uri)
            client.search_experiments(max_results=1)
        return client

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment_name)
        if found is None:
            place = (self.folder / "artifacts").as_uri() if self.is_local else None
            try:
                return str(self._client.create_experiment(self.experiment_name, artifact_location=place))
            except MlflowException:  # another process was faster
                found = self._client.get_experiment_by_name(self.experiment_name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _find_run(self, run: TrackedRun) -> Any:
        from mlflow.exceptions import MlflowException

        ids = run.find_ids("mlflow")
        if ids is None or ids.get("tracking_uri") != self._place:
            return None
        try:
            earlier = self._client.get_run(ids["run_id"])
        except MlflowException:  # it was deleted for good
            return None
        if earlier.info.lifecycle_stage != "active":
            return None
        self._client.update_run(earlier.info.run_id, status="RUNNING")
        self._experiment_id = earlier.info.experiment_id
        return earlier

    def _make_run(self, run: TrackedRun) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        # MLflow's own are of the script: the commit of this package, where it lies in a repository
        own = {key: value for key, value in resolve_tags().items() if not key.startswith("mlflow.source.git")}
        tags = {**own, "mlflow.source.name": "finetune.train", **run.tags, "folder": str(run.folder)}
        if "git_commit" in run.tags:
            tags["mlflow.source.git.commit"] = run.tags["git_commit"]
        if run.sweep is not None:
            tags["mlflow.parentRunId"] = self._sweep_run(run.sweep)
        made = self._client.create_run(self._experiment_id, tags=tags, run_name=run.name)
        return str(made.info.run_id)

    def _sweep_run(self, sweep: Path) -> str:
        """Return the run of a sweep, the parent of those of its points, which may run in other processes."""
        with sweep_lock(sweep):
            ids = read_ids(sweep).get("mlflow", {})
            if ids.get("tracking_uri") == self._place:
                return str(ids["run_id"])
            made = self._client.create_run(self._experiment_id, tags={"folder": str(sweep)}, run_name=sweep.name)
            # nobody knows which of its points is the last one
            self._client.set_terminated(made.info.run_id)
            keep_ids(sweep, "mlflow", {"tracking_uri": self._place, "run_id": made.info.run_id})
            return str(made.info.run_id)

    def _log_parameters(self, run: TrackedRun, logged: Mapping[str, str]) -> None:
        """Log the configuration; what a resumed run has other than before becomes tags, as parameters never change."""
        from mlflow.entities import Param, RunTag

        values = {_name(key): _text(value) for key, value in run.parameters().items()}
        new = [Param(key, value) for key, value in values.items() if key not in logged]
        changed = [RunTag(f"resumed.{key}", value) for key, value in values.items() if logged.get(key, value) != value]
        for start in range(0, len(new), 100):  # as many as a request may have
            self._client.log_batch(self._run_id, params=new[start : start + 100])
        if changed:
            self._client.log_batch(self._run_id, tags=changed)

    def describe(self) -> str:
        """Return the address of the run, or the command that shows the database."""
        if is_address(self.uri):
            return f"{self._place.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{self._run_id}"
        return f"mlflow ui --backend-store-uri {shlex.quote(self._place)}"

    # --- the run -----------------------------------------------------------------------------------------------

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log the metrics of an epoch, over the epochs."""
        self.log_metrics(row, int(row["epoch"]))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(_name(name), value, now, step) for name, value in numbers(metrics).items()]
        self._client.log_batch(self._run_id, metrics=batch)

    def log_results(self, results: Results) -> None:
        """Log the best and the test metrics, the pictures, the page, and the model."""
        self.log_metrics(results.metrics, results.epoch)
        for path in results.pictures.values():
            self._client.log_artifact(self._run_id, str(path), "plots")
        if results.report is not None:
            self._client.log_artifact(self._run_id, str(results.report))
        if results.checkpoint is not None and self.log_model:
            with _fewer_lines():
                self._log_model(results, results.checkpoint)

    def _log_model(self, results: Results, checkpoint: Path) -> None:
        """Log best.ckpt as a model that `mlflow.pyfunc.load_model` loads through this package, without unpickling."""
        import mlflow
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema

        label, *others = mlflow_model.output_columns(results.classes)
        outputs: list[Any] = [ColSpec("string", label), *(ColSpec("double", name) for name in others)]
        signature = ModelSignature(Schema([ColSpec("string")]), Schema(outputs))
        logged = self._client.create_logged_model(
            self._experiment_id, name=MODEL_NAME, source_run_id=self._run_id, model_type="finetune"
        )
        self._client.log_outputs(self._run_id, [LoggedModelOutput(logged.model_id, step=results.epoch)])
        status = "FAILED"
        try:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "model"
                mlflow.pyfunc.save_model(
                    str(place),
                    loader_module=mlflow_model.__name__,
                    data_path=str(checkpoint),
                    signature=signature,
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location, run_id=self._run_id, model_uuid=logged.model_id,
                        model_id=logged.model_id,
                    ),
                    pip_requirements=[f"{name}=={version(name)}" for name in ("finetune-lightning", "torch", "mlflow")],
                )  # fmt: skip
                self._client.log_model_artifacts(logged.model_id, str(place))
            status = "READY"
        finally:
            self._client.finalize_logged_model(logged.model_id, status)

    def finish(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id, _STATUS[status])

    @property
    def experiment(self) -> Any:
        """Return the `MlflowClient`."""
        return self._client


def _name(name: str) -> str:
    """Return a name as MLflow takes it."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def _text(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text[:6000]


@contextmanager
def _fewer_lines() -> Iterator[None]:
    """Silence what MLflow says of the tables that it makes."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    try:
        import mlflow  # noqa: F401 - sets the levels when it is imported

        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
