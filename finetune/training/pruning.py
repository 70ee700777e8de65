"""Report the validations of a run to the study of its sweep, and stop a run that is worse than others were."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from finetune.io import study as studies
from finetune.runtime.console import echo, field_line


class TrialPruning(Callback):
    """Reports what is monitored after each validation to a trial of Optuna's; stops the run where the pruner says so.

    The run ends as any other: with its best checkpoint and its record. A trial that has ended is left as it is: a run of
    a sweep that is resumed for itself has one.
    """

    def __init__(self, address: str, study_name: str | None, number: int, pruner: str, monitor: str) -> None:
        """Name the trial.

        Args:
            address: of the storage, see `finetune.io.study.open_storage`.
            study_name: of the study in it; None is as it is called by default.
            number: of the trial.
            pruner: its name.
            monitor: the metric.
        """
        self.address, self.study_name, self.number = address, study_name, number
        self.pruner, self.monitor = pruner, monitor
        self.values: list[float] = []
        """What was reported, in order."""
        self._trial: _StoredTrial | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the trial."""
        self._trial = _StoredTrial(self.address, self.study_name, self.number, self.pruner)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what a run that goes on has reported to an earlier trial."""
        if self._trial is not None:
            self._trial.write(self.values)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self.monitor.startswith("val/"):
            self._report(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report an epoch, where a metric of the training is monitored."""
        schedule = getattr(pl_module, "schedule", None)
        is_fair = schedule is None or schedule.may_be_best(trainer.current_epoch, self.monitor)
        if not self.monitor.startswith("val/") and is_fair:
            self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or self._trial is None:
            return
        self.values.append(float(f"{float(value):.7g}"))  # 32 bits, as the run's record has it
        self._trial.write(self.values)
        is_last = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        if not is_last and not trainer.should_stop and self._trial.is_worse():
            trainer.should_stop = True
            text = f"trial {self.number} is pruned after {len(self.values)} validations, worse than others were"
            echo(field_line("Note", f"{text} ({self.monitor}, sweep.pruner={self.pruner})."))

    def state_dict(self) -> dict[str, Any]:
        """Return what was reported, for checkpoints."""
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what the run that is resumed has reported."""
        self.values = [float(value) for value in state_dict["values"]]


class _StoredTrial:
    """A trial as its storage has it: Optuna's own class would sample it once more."""

    def __init__(self, address: str, study_name: str | None, number: int, pruner: str) -> None:
        self.pruner = studies.make_pruner(pruner)
        self.study = studies.load_study(address, study_name, pruner=self.pruner)
        self.storage = self.study._storage
        self.id = self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    def write(self, values: list[float]) -> None:
        """Write down the values that the trial does not have yet, by steps from 1."""
        trial = self.storage.get_trial(self.id)
        for step, value in enumerate(values, start=1):
            if step not in trial.intermediate_values and not trial.state.is_finished():
                self.storage.set_trial_intermediate_value(self.id, step, value)

    def is_worse(self) -> bool:
        """Return whether the pruner stops the trial, and note it down."""
        trial = self.storage.get_trial(self.id)
        is_worse = not trial.state.is_finished() and self.pruner.prune(self.study, trial)
        if is_worse:
            self.storage.set_trial_user_attr(self.id, studies.PRUNED, True)
        return is_worse
