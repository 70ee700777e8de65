"""Write the checkpoints of a run, and seed its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging

from finetune.checkpoints.format import read_checkpoint
from finetune.io.files import copy_file
from finetune.io.paths import PREDICTIONS_FILE
from finetune.metrics.classification import monitor_mode
from finetune.runtime.seeding import derive_seed, seed_cpu


class BestCheckpoint(ModelCheckpoint):
    """Writes `best.ckpt`; a run resumed into a new folder keeps the best model and score of the run it continues."""

    def __init__(self, folder: Path, monitor: str, beside: Path | None = None, mode: str | None = None) -> None:
        """Name the folder and what is monitored.

        Args:
            folder: of the checkpoints.
            monitor: the metric.
            beside: folder of the checkpoint that is resumed, where its best one is if the run was moved.
            mode: "min" or "max"; None is as the metric's name says.
        """
        super().__init__(folder, "best", monitor, mode=mode or monitor_mode(monitor), **_CHECKPOINT_OPTIONS)
        self.beside = beside

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        """Return False where validations lie within epochs: the weights that one was about are gone at the epoch's end."""
        interval = trainer.val_check_interval  # 1.0 is once an epoch, 1 after every batch
        return (isinstance(interval, float) and interval == 1.0) or not str(self.monitor).startswith("val/")

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        """Return True too for weights that were not validated, with which a run ends that is stopped within an epoch, and for an
        epoch that cannot be compared with the others."""
        validation = getattr(getattr(trainer.lightning_module, "metadata", None), "validation", None)
        stale = (
            validation is not None and str(self.monitor).startswith("val/") and validation.step != trainer.global_step
        )
        schedule = getattr(trainer.lightning_module, "schedule", None)
        unfair = schedule is not None and not schedule.may_be_best(trainer.current_epoch, str(self.monitor))
        return stale or unfair or super()._should_skip_saving_checkpoint(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best model and score of the run that is resumed."""
        if not state_dict["best_model_path"]:  # the run was stopped before its first validation
            super().load_state_dict({**state_dict, "dirpath": self.dirpath, "last_model_path": ""})
            return
        # a file says where it is, and could say anything
        places = [self.beside / "best.ckpt"] if self.beside else []
        places += [path for path in [Path(state_dict["best_model_path"])] if path.name == "best.ckpt"]
        old = next((path for path in places if path.is_file()), None)
        if old is None or self.dirpath is None:
            where = f" at {places[-1]}" if places else ""
            raise ValueError(f"The best checkpoint of the run to resume is not{where}; put it beside its last.ckpt.")
        read_checkpoint(old)
        new = Path(self.dirpath) / "best.ckpt"
        if new.resolve() != old.resolve():
            for name in (PREDICTIONS_FILE, "best.ckpt"):
                if (old.parent / name).is_file():
                    copy_file(old.parent / name, new.parent / name)  # every process does
        path = str(new)
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": path,
                "kth_best_model_path": path,
                "best_k_models": {path: state_dict["best_model_score"]},
                "last_model_path": "",
            }
        )


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt`, the last epoch whatever its score: `save_last` of a monitored checkpoint may be an older one."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        super().__init__(folder, "last", monitor=None, **_CHECKPOINT_OPTIONS)
        self.is_final = False
        """Whether the file is of a stop within an epoch, from which a run goes on there; it is not written again."""

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        return self.is_final or super()._should_skip_saving_checkpoint(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: Lightning would delete the file that the checkpoint names as the previous one."""


_CHECKPOINT_OPTIONS: dict[str, Any] = {
    "save_top_k": 1,
    "auto_insert_metric_name": False,  # val/acc in a file name would make folders
    "enable_version_counter": False,
    "save_on_train_epoch_end": True,
}


def refuse_callbacks(trainer: Trainer) -> None:
    """Refuse callbacks of Lightning that would make a number wrong.

    Raises:
        ValueError: there is one; says what to do instead.
    """
    module: Any = trainer.lightning_module
    if not module.automatic_optimization and (
        module.warmup or any(group.warmup for group, _ in module.schedule.groups)
    ):
        raise ValueError(
            "With automatic_optimization=False the steps are yours, and so are their rates: leave warmup= out, and groups' too."
        )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averaging = [type(callback).__name__ for callback in callbacks if isinstance(callback, WeightAveraging)]
    if len(averaging) > 1:
        raise ValueError(f"{' and '.join(averaging)} would put their averages in each other's place: give one of them.")
    for callback in callbacks:
        name = type(callback).__name__
        if averaging and isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
            raise ValueError(
                f"{name}(save_weights_only=True) would save the weights, and not the average that {averaging[0]} has validated: "
                "leave it out. A checkpoint loads without the state of its run."
            )
        if isinstance(callback, WeightAveraging):  # used in another fit before; what is resumed is restored later
            callback._latest_update_step = min(callback._latest_update_step, trainer.global_step)
        if isinstance(callback, BaseFinetuning):
            raise ValueError(
                f"{name} and the strategy would both decide what is trainable. Leave it out, and give a strategy: "
                "strategy=gradual and strategy=lp_ft unfreeze in the course of a run."
            )
        if isinstance(callback, StochasticWeightAveraging):
            raise ValueError(
                f"{name} averages after the last checkpoint was written, so that no file would hold the average. Give "
                "finetune.training.averaging.EpochAveraging (+callbacks=swa) instead."
            )
        if getattr(callback, "update_starting_at_epoch", None) is not None:
            raise ValueError(
                f"{name} with update_starting_at_epoch averages after an epoch was validated, so that the weights that are "
                "saved are not those that were validated. Give update_starting_at_step instead."
            )
        if (step := getattr(callback, "update_starting_at_step", None)) and module.strategy.solve_head:
            raise ValueError(
                f"{name} with update_starting_at_step={step} would validate and save, until then, weights from before the head "
                "was solved. Leave it out."
            )


class SeedEveryBatch(Callback):
    """Seeds every batch, so that a resumed run draws the same dropout and MixUp."""

    def __init__(self, seed: int) -> None:
        """Name the seed of the run."""
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed from the run's seed, the epoch, the batch and the process."""
        seed = derive_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        if trainer.strategy.root_device.type == "cpu":
            seed_cpu(seed)
        else:
            torch.manual_seed(seed)
