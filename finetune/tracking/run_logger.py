"""Connect trackers to Lightning: a Logger that guards one, and the callback that hands it the epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from finetune.runtime.console import echo, field_line
from finetune.runtime.passwords import without_password
from finetune.tracking.tracked_run import TrackedRun
from finetune.tracking.tracker import FAILED, FINISHED, STOPPED, Tracker, numbers, read_results
from finetune.tracking.worker import Worker, first_line
from finetune.training.history import find_history


class RunLogger(Logger):
    """Hands a run to a tracker; whatever the tracker does, the training goes on.

    It is a Logger of Lightning, so that callbacks which log, such as LearningRateMonitor, find one.
    """

    def __init__(self, tracker: Tracker, run: TrackedRun) -> None:
        """Name the tracker and the run; nothing is begun yet."""
        super().__init__()
        self.tracker, self.run = tracker, run
        self._worker = Worker(tracker.label, tracker.is_reachable)
        self._begun = self._told = self._ended = False
        self._place = ""

    # --- as Lightning sees it ----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Return the name of the tracker."""
        return self.tracker.label

    @property
    def version(self) -> str:
        """Return the name of the run."""
        return self.run.name

    @property
    def save_dir(self) -> str:
        """Return the folder of the run."""
        return str(self.run.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the tool's own object, for callbacks that log more with it."""
        return self.tracker.experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration of the run, which holds them, is handed over when it begins."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take metrics of a step; those of an epoch come from its row in the history."""
        values = dict(metrics)
        if not self.tracker.takes_lightnings_metrics and "epoch" in values:  # from `self.log` in a module
            values = {k: v for k, v in values.items() if k != "epoch" and ("/" not in k or k.endswith("_step"))}
        if values:
            self._post(lambda: self.tracker.log_metrics(values, step or 0))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do nothing: Lightning says so after the training and after the test, and the run ends later."""

    # --- as a run calls it -------------------------------------------------------------------------------------

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin the run, and wait for a tracker that answers; `rows` are the epochs that it has behind it."""
        earlier = [_epoch_values(row) for row in rows]

        def start() -> None:
            last = self.tracker.start(self.run)
            self._place = without_password(self.tracker.describe())
            self._begun = True
            if not self.tracker.takes_lightnings_metrics and last is not None:
                for values in earlier:
                    if values["epoch"] > last:
                        self.tracker.log_epoch(values)

        self._worker.post(start)
        self._worker.wait(self.tracker.start_limit_s)
        self.tell()

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Hand over the row of an epoch."""
        if not self.tracker.takes_lightnings_metrics:
            values = _epoch_values(row)
            self._post(lambda: self.tracker.log_epoch(values))
        self.tell()

    def log_graph_of(self, module: Any) -> None:
        """Hand over the graph of a module's network, where the tracker wants it."""
        if not self.tracker.wants_graph:
            return
        try:
            network = copy.deepcopy(module.backbone).cpu().eval()  # the module's own is trained meanwhile
        except Exception as error:
            self._worker.note(f"the graph cannot be drawn ({first_line(error)})")
            return
        size, channels = module.preprocess.size, module.preprocess.channels
        self._post(lambda: self.tracker.log_graph(network, torch.zeros(1, channels, size, size)))

    def end(self, status: str) -> None:
        """Hand over the results of a run that is finished, and end it; wait for a tracker that answers."""
        if self._ended:
            return
        if not self._worker.was_called:  # the error came before the first batch
            self._ended = True
            return
        if status == FINISHED:
            self._post(lambda: self.tracker.log_results(read_results(self.run.folder)))
        self._post(lambda: self.tracker.finish(status))
        self._ended = True
        done = self._worker.wait(self.tracker.end_limit_s)
        self._worker.close()
        self.tell()
        if not (done and self._begun):
            text = f"{self.tracker.label} has not got all of this run; its folder has."
            echo(field_line("Note", text))

    def tell(self) -> None:
        """Print where the run can be seen, as soon as it has begun, and what went wrong."""
        for text in self._worker.take_notes():
            rest = "" if self._ended else ". The run goes on, and its folder has it all."
            echo(field_line("Note", f"{self.tracker.label}: {text}{rest}"))
        if self._begun and not self._told:
            self._told = True
            echo(f"{'Tracking':<10}{self._place}")  # in one line, to be pasted

    def _post(self, function: Callable[[], Any]) -> None:
        self._worker.post(lambda: function() if self._begun else None)


def _epoch_values(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in numbers(row).items() if not name.endswith("_step")}


class TrackEpochs(Checkpoint):
    """Begins the run of each tracker, and hands over each epoch when its row is complete and its checkpoint written.

    It is a `Checkpoint` to be called after `History` and those that save.
    """

    def __init__(self, loggers: Sequence[RunLogger]) -> None:
        """Name the loggers."""
        self.loggers = list(loggers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the run; what is resumed has been restored."""
        if trainer.is_global_zero and self.loggers:
            self.loggers[0].run.inherit_ids()
            for logger in self.loggers:
                logger.begin(find_history(trainer).rows)
                logger.log_graph_of(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the last row."""
        if trainer.is_global_zero:
            for logger in self.loggers:
                logger.log_epoch(find_history(trainer).rows[-1])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the run as stopped or failed."""
        if trainer.is_global_zero:
            for logger in self.loggers:
                logger.end(FAILED if isinstance(exception, Exception) else STOPPED)


@contextmanager
def handing_over(trainer: Trainer) -> Iterator[None]:
    """Hand the results that the block writes in the folder of a run to its trackers; end the run there if it raises."""
    status = FINISHED
    try:
        yield
    except BaseException as error:
        status = FAILED if isinstance(error, Exception) else STOPPED
        raise
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger) and trainer.is_global_zero:
                logger.end(status)
