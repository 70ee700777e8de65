"""Write the checkpoints of a run, and seed its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from finetune.checkpoints.format import read_checkpoint
from finetune.io.files import copy_file
from finetune.io.paths import PREDICTIONS_FILE
from finetune.runtime.seeding import derive_seed, seed_cpu
from finetune.training.history import monitor_mode


class BestCheckpoint(ModelCheckpoint):
    """Writes `best.ckpt`; a run resumed into a new folder keeps the best model and score of the run it continues."""

    def __init__(self, folder: Path, monitor: str, beside: Path | None = None) -> None:
        """Name the folder; `beside` is that of the checkpoint that is resumed, where its best one is if the run was moved."""
        super().__init__(folder, "best", monitor, mode=monitor_mode(monitor), **_CHECKPOINT_OPTIONS)
        self.beside = beside

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: Lightning would delete the file that the checkpoint names as the previous one."""


_CHECKPOINT_OPTIONS: dict[str, Any] = {
    "save_top_k": 1,
    "auto_insert_metric_name": False,  # val/acc in a file name would make folders
    "enable_version_counter": False,
    "save_on_train_epoch_end": True,
}


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
