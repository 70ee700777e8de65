"""Record the metrics of every epoch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from finetune.io.files import write_arrays, write_csv
from finetune.io.paths import PREDICTIONS_FILE


class History(Checkpoint):
    """Records one row of metrics an epoch, in `metrics.csv` and in the checkpoints, so that a resumed run goes on with it.

    `history.rows` are one dict an epoch: `epoch` from 1, `step`, `train/loss`, `val/acc` and the like, the rate `lr/NAME`
    of each group, `seconds` and `images_per_second`. `pandas.DataFrame(history.rows)` makes a table of them.

    It is a `Checkpoint` because Lightning runs those last, when all metrics of the epoch exist; put it before the others.
    """

    def __init__(self, path: Path, monitor: str) -> None:
        """Name the table, and the metric that says which epoch is best."""
        self.path, self.monitor = path, monitor
        self.rows: list[dict[str, Any]] = []
        """One dict an epoch, numbered from 1; `pandas.DataFrame(history.rows)` makes a table of them."""
        self.best_results: dict[str, Any] = {}
        """All validation metrics of the best epoch, the per-class ones included."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        self.on_train_epoch_start(trainer, pl_module)  # which is not called in an epoch that is resumed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure the epoch."""
        self._began = self._trained = time.perf_counter()
        self._seen = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the images."""
        self._trained = time.perf_counter()
        self._seen += len(batch[1])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of the epoch, and keep the results of the best one."""
        # metrics are 32-bit floats: further digits would be noise
        values = {k: float(f"{v.item():.7g}") for k, v in trainer.callback_metrics.items() if v.ndim == 0}
        epoch = trainer.current_epoch + 1
        validated = epoch % (trainer.check_val_every_n_epoch or 1) == 0
        # Lightning keeps the last validation's values in epochs without one
        metrics = {
            k: values[k] for k in sorted(values, key=_column) if "/" in k and (validated or not k.startswith("val/"))
        }
        times = {
            "seconds": round(time.perf_counter() - self._began, 3),
            "images_per_second": round(self._seen * trainer.world_size / max(1e-9, self._trained - self._began), 1),
        }
        self.rows = [r for r in self.rows if r["epoch"] != epoch]
        self.rows.append({"epoch": epoch, "step": trainer.global_step, **metrics, **times})
        best = best_epoch(self.rows, self.monitor) is self.rows[-1]
        if best:  # an epoch that was not validated has no results
            self.best_results = dict(getattr(pl_module, "results", {}).get("val", {})) if validated else {}
        if trainer.is_global_zero:
            if best:
                self._write_predictions(trainer, getattr(pl_module, "val_predictions", None) if validated else None)
            self.write()

    def _write_predictions(self, trainer: Trainer, predictions: tuple[Tensor, Tensor] | None) -> None:
        """Write `best.npz`: the best epoch's probabilities, labels and names; remove it where there are none."""
        path = self.path.parent / "checkpoints" / PREDICTIONS_FILE
        split = getattr(getattr(trainer, "datamodule", None), "splits", {}).get("val")
        if predictions is None or split is None:
            path.unlink(missing_ok=True)
            return
        probabilities, labels = predictions
        images, processes = len(labels), trainer.world_size
        # each process had every so-many-th image, and their predictions stand one after the other
        order = torch.cat([torch.arange(rank, images, processes) for rank in range(processes)]).argsort()
        arrays = {
            "probabilities": probabilities[order].float().numpy(),
            "labels": labels[order].numpy(),
            "keys": np.array(split.keys[:images]),
        }
        write_arrays(arrays, path)

    def write(self) -> None:
        """Write the whole table, or leave the old one."""
        columns = list(dict.fromkeys(k for row in self.rows for k in row))
        write_csv(columns, [[row.get(k, "") for k in columns] for row in self.rows], self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, for checkpoints."""
        return {"rows": self.rows, "best_results": self.best_results}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the rows of the run that is resumed."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.best_results = dict(state_dict["best_results"])


def find_history(trainer: Trainer) -> History:
    """Return the record of a run's epochs."""
    return next(c for c in trainer.callbacks if isinstance(c, History))  # type: ignore[attr-defined]


def _column(name: str) -> tuple[int, str]:
    order = ["train/loss", "train/acc", "val/loss", "val/acc"]
    return (order.index(name) if name in order else len(order) + name.startswith("lr/"), name)


def monitor_mode(monitor: str) -> str:
    """Return "min" where less of a metric is better, else "max"."""
    return "min" if monitor.endswith("loss") else "max"


def best_epoch(rows: list[dict[str, Any]], monitor: str) -> dict[str, Any] | None:
    """Return the row of the first epoch with the best value of a metric; None where it was never measured."""
    candidates = [row for row in rows if monitor in row]
    pick = min if monitor_mode(monitor) == "min" else max
    return pick(candidates, key=lambda row: row[monitor], default=None)
