"""Record the metrics of every epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from finetune.data.datamodule import ImageDataModule
from finetune.io.files import write_arrays, write_csv
from finetune.io.paths import EPOCHS_FILE, PREDICTIONS_FILE
from finetune.metrics.classification import monitor_mode
from finetune.training.batches import batch_size
from finetune.training.validation_log import ValidationLog


class History(Checkpoint):
    """Records one row of metrics an epoch, in `metrics.csv` and in the checkpoints, so that a resumed run goes on with it.

    `history.rows` are one dict an epoch: `epoch` from 1, `step`, `train/loss`, `val/acc` and the like, the rate `lr/NAME`
    of each group, `seconds` and `images_per_second`. `pandas.DataFrame(history.rows)` makes a table of them.

    It is a `Checkpoint` because Lightning runs those last, when all metrics of the epoch exist; put it before the others.
    """

    def __init__(self, path: Path, monitor: str, mode: str | None = None) -> None:
        """Name the table, and the metric that says which epoch is best; `mode` None is as its name says."""
        self.path, self.monitor, self.mode = path, monitor, mode or monitor_mode(monitor)
        self.rows: list[dict[str, Any]] = []
        """One dict an epoch, numbered from 1; `pandas.DataFrame(history.rows)` makes a table of them."""
        self.best_results: dict[str, Any] = {}
        """All validation metrics of the best epoch, the per-class ones included."""
        self.validations = ValidationLog()
        """Which images each validation predicted correctly, in the order of `best.npz`."""
        self.seconds_before = 0.0
        """Of the epochs before the run was resumed."""
        self.features: dict[str, Any] | None = None
        """Whether features took the place of images, and were in the cache; see `CachedFeatures.record`."""
        self._first_may_be_best = True
        self._validation: dict[str, Any] | None = None
        """Step, logged values and results of this epoch's validation, the best one where there are several."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the module, also of a run in which nothing is left to train, whether its first epoch may be the best."""
        schedule = getattr(pl_module, "schedule", None)  # which may not know yet how long the run is
        is_fair = schedule is None or schedule.may_be_best(0, self.monitor)
        self._first_may_be_best = is_fair or trainer.max_epochs == 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        data = getattr(trainer, "datamodule", None)
        kept = data.features if isinstance(data, ImageDataModule) else None  # released at the end
        self.features = kept.record() if kept is not None else None
        self._measure()  # `on_train_epoch_start` is not called in an epoch that is resumed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure the epoch."""
        self._validation = None
        self._measure()

    def _measure(self) -> None:
        self._began = self._trained = time.perf_counter()
        self._seen = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the images."""
        self._trained = time.perf_counter()
        self._seen += batch_size(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation if it is the best of its epoch; those of a run without a training do not count."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        values = {k: v for k, v in _scalars(trainer).items() if k.startswith("val/")}
        results = dict(getattr(pl_module, "results", {}).get("val", {}))
        found = {"step": trainer.global_step, "values": values, "results": results}
        predictions = getattr(pl_module, "val_predictions", None)
        if predictions is not None:  # every process has them all
            # beside the weights, their average may have been validated: the best of both is the best of two
            for found_of in (predictions, getattr(pl_module, "rejected_predictions", None)):
                if found_of is not None:
                    self.validations.add(trainer.current_epoch + 1, trainer.global_step, *_in_order(found_of, trainer))
        if self._validation is not None and not self._is_better(values, self._validation["values"]):
            return
        self._validation = found
        best = self.best()
        is_best = self.monitor in values and (best is None or self._is_better(values, best))
        if trainer.is_global_zero and is_best:
            self._write_predictions(trainer, predictions)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of the epoch, and keep the results of the best one."""
        epoch, validation = trainer.current_epoch + 1, self._validation
        # Lightning keeps the last validation's values in epochs without one
        values = {k: v for k, v in _scalars(trainer).items() if "/" in k and not k.startswith("val/")}
        metrics = {**values, **(validation["values"] if validation is not None else {})}
        row: dict[str, Any] = {"epoch": epoch, "step": trainer.global_step}
        if validation is not None and validation["step"] != trainer.global_step:
            row["validated_at_step"] = validation["step"]
        times = {
            "seconds": round(time.perf_counter() - self._began, 3),
            "images_per_second": round(self._seen * trainer.world_size / max(1e-9, self._trained - self._began), 1),
        }
        self.rows = [r for r in self.rows if r["epoch"] != epoch]
        self.rows.append({**row, **{k: metrics[k] for k in sorted(metrics, key=_column)}, **times})
        if self.best() is self.rows[-1]:  # an epoch that was not validated has no results
            self.best_results = validation["results"] if validation is not None else {}
            if trainer.is_global_zero and not self.monitor.startswith("val/"):
                found = getattr(pl_module, "val_predictions", None) if validation is not None else None
                self._write_predictions(trainer, found)
        if trainer.is_global_zero:
            self.write()

    def best(self) -> dict[str, Any] | None:
        """Return the row of the best epoch so far; None where what is monitored was never measured."""
        rows = [row for row in self.rows if row["epoch"] > 1 or self._first_may_be_best]
        return best_epoch(rows, self.monitor, self.mode)

    def _is_better(self, values: Mapping[str, Any], than: Mapping[str, Any]) -> bool:
        """Return whether a validation is better than another; the later where what is monitored is no part of it."""
        if self.monitor not in values or self.monitor not in than:
            return True
        a, b = values[self.monitor], than[self.monitor]
        return bool(a < b if self.mode == "min" else a > b)

    def _write_predictions(self, trainer: Trainer, predictions: tuple[Tensor, Tensor] | None) -> None:
        """Write `best.npz`: the best epoch's probabilities, labels and names; remove it where there are none."""
        path = self.path.parent / "checkpoints" / PREDICTIONS_FILE
        splits = getattr(getattr(trainer, "datamodule", None), "splits", {})
        # without validation images the predictions are out-of-fold ones of the training images
        split = splits.get("val") or splits.get("train")
        if predictions is None or split is None:
            path.unlink(missing_ok=True)
            return
        probabilities, labels = _in_order(predictions, trainer)
        arrays = {
            "probabilities": probabilities.float().numpy(),
            "labels": labels.numpy(),
            "keys": np.array(split.keys[: len(labels)]),
        }
        write_arrays(arrays, path)

    def write(self) -> None:
        """Write the whole table and `epochs.npz`, or leave the old ones."""
        columns = list(dict.fromkeys(k for row in self.rows for k in row))
        write_csv(columns, [[row.get(k, "") for k in columns] for row in self.rows], self.path)
        self.validations.write(self.path.parent / "checkpoints" / EPOCHS_FILE)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, for checkpoints."""
        return {
            "rows": self.rows,
            "best_results": self.best_results,
            "best_of_epoch": self._validation,
            "validations": self.validations.entries,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the rows of the run that is resumed."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.seconds_before = sum(row.get("seconds", 0.0) for row in self.rows)
        self.best_results = dict(state_dict["best_results"])
        self._validation = state_dict.get("best_of_epoch")
        self.validations = ValidationLog(state_dict.get("validations", ()))


def find_history(trainer: Trainer) -> History:
    """Return the record of a run's epochs."""
    return next(c for c in trainer.callbacks if isinstance(c, History))  # type: ignore[attr-defined]


def _in_order(predictions: tuple[Tensor, Tensor], trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Return probabilities and labels in the order of the images."""
    probabilities, labels = predictions
    images, processes = len(labels), trainer.world_size
    # each process had every so-many-th image, and their predictions stand one after the other
    order = torch.cat([torch.arange(rank, images, processes) for rank in range(processes)]).argsort()
    return probabilities[order], labels[order]


def _column(name: str) -> tuple[int, str]:
    order = ["train/loss", "train/acc", "val/loss", "val/acc"]
    return (order.index(name) if name in order else len(order) + name.startswith("lr/"), name)


def _scalars(trainer: Trainer) -> dict[str, float]:
    """Return what was logged last; metrics are 32-bit floats, and further digits would be noise."""
    return {k: float(f"{v.item():.7g}") for k, v in trainer.callback_metrics.items() if v.ndim == 0}


def best_epoch(rows: list[dict[str, Any]], monitor: str, mode: str | None = None) -> dict[str, Any] | None:
    """Return the row of the first epoch with the best value of a metric; None where it was never measured."""
    candidates = [row for row in rows if monitor in row]
    pick = min if (mode or monitor_mode(monitor)) == "min" else max
    return pick(candidates, key=lambda row: row[monitor], default=None)
