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
    """One row of metrics an epoch, in `metrics.csv` and in the checkpoints, so that a resumed run goes on with it.

    A `Checkpoint`, for Lightning runs those last, when all metrics of the epoch are there; put it before the others.
    """

    def __init__(self, path: Path, monitor: str) -> None:
        self.path, self.monitor = path, monitor
        self.rows: list[dict[str, Any]] = []
        self.best_results: dict[str, Any] = {}
        """All validation metrics of the best epoch, the per-class ones included."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which is not called in an epoch that is resumed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._trained = time.perf_counter()
        self._seen = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._trained = time.perf_counter()
        self._seen += len(batch[1])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # metrics are 32-bit floats: further digits would be noise
        values = {k: float(f"{v.item():.7g}") for k, v in trainer.callback_metrics.items() if v.ndim == 0}
        judged = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        # Lightning keeps the last validation's values in epochs without one
        metrics = {
            k: values[k] for k in sorted(values, key=_column) if "/" in k and (judged or not k.startswith("val/"))
        }
        times = {
            "seconds": round(time.perf_counter() - self._began, 3),
            "images_per_second": round(self._seen * trainer.world_size / max(1e-9, self._trained - self._began), 1),
        }
        self.rows = [r for r in self.rows if r["epoch"] != trainer.current_epoch + 1]
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **metrics, **times})
        best = best_epoch(self.rows, self.monitor) is self.rows[-1]
        if best:  # an epoch that was not validated has no results
            self.best_results = dict(getattr(pl_module, "results", {}).get("val", {})) if judged else {}
        if trainer.is_global_zero:
            if best:
                self._keep_answers(trainer, getattr(pl_module, "answers", None) if judged else None)
            self.write()

    def _keep_answers(self, trainer: Trainer, answers: tuple[Tensor, Tensor] | None) -> None:
        """`best.npz`: what the best epoch said of every validation image, by name; none of an epoch without."""
        path = self.path.parent / "checkpoints" / PREDICTIONS_FILE
        split = getattr(getattr(trainer, "datamodule", None), "splits", {}).get("val")
        if answers is None or split is None:
            path.unlink(missing_ok=True)
            return
        probabilities, labels = answers
        images, ranks = len(labels), trainer.world_size
        # each process had every so-many-th image; theirs stand one after the other
        order = torch.cat([torch.arange(rank, images, ranks) for rank in range(ranks)]).argsort()
        write_arrays(
            {
                "probabilities": probabilities[order].float().numpy(),
                "labels": labels[order].numpy(),
                "keys": np.array(split.keys[:images]),
            },
            path,
        )

    def write(self) -> None:
        """Write the whole table, or leave the old one."""
        columns = list(dict.fromkeys(k for row in self.rows for k in row))
        write_csv(columns, [[row.get(k, "") for k in columns] for row in self.rows], self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best_results": self.best_results}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.best_results = dict(state_dict["best_results"])


def _column(name: str) -> tuple[int, str]:
    order = ["train/loss", "train/acc", "val/loss", "val/acc"]
    return (order.index(name) if name in order else len(order) + name.startswith("lr/"), name)


def monitor_mode(monitor: str) -> str:
    """Whether less or more of a metric is better."""
    return "min" if monitor.endswith("loss") else "max"


def best_epoch(rows: list[dict[str, Any]], monitor: str) -> dict[str, Any] | None:
    """The first epoch with the best value of a metric."""
    candidates = [row for row in rows if monitor in row]
    pick = min if monitor_mode(monitor) == "min" else max
    return pick(candidates, key=lambda row: row[monitor], default=None)
