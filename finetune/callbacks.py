"""What a run does beside training: its record, its checkpoints, its seeds, its lines on the terminal."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from finetune.checkpoint import copy, read, write_arrays, write_csv
from finetune.console import console, say
from finetune.loaders import seed_cpu
from finetune.runs import ANSWERS
from finetune.splits import seed_of


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
        self.rows = [r for r in self.rows if r["epoch"] != trainer.current_epoch]
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **metrics, **times})
        best = best_row(self.rows, self.monitor) is self.rows[-1]
        if best:  # an epoch that was not validated has no results
            self.best_results = dict(getattr(pl_module, "results", {}).get("val", {})) if judged else {}
        if trainer.is_global_zero:
            if best:
                self._keep_answers(trainer, getattr(pl_module, "answers", None) if judged else None)
            self.write()

    def _keep_answers(self, trainer: Trainer, answers: tuple[Tensor, Tensor] | None) -> None:
        """`best.npz`: what the best epoch said of every validation image, by name; none of an epoch without."""
        path = self.path.parent / "checkpoints" / ANSWERS
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


def mode_of(monitor: str) -> str:
    """Whether less or more of a metric is better."""
    return "min" if monitor.endswith("loss") else "max"


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`. A run resumed into a new folder keeps the best model and score of the run it continues."""

    def __init__(self, folder: Path, monitor: str, beside: Path | None = None) -> None:
        """`beside` is the folder of the checkpoint that is resumed: where its best one is if the run was moved."""
        super().__init__(folder, "best", monitor, mode=mode_of(monitor), **_CHECKPOINT_OPTIONS)
        self.beside = beside

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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
        read(old)
        new = Path(self.dirpath) / "best.ckpt"
        if new.resolve() != old.resolve():
            for name in (ANSWERS, "best.ckpt"):
                if (old.parent / name).is_file():
                    copy(old.parent / name, new.parent / name)  # every process does
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
    """`last.ckpt`, the last epoch, whatever its score: `save_last` of a monitored checkpoint may be an older one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "last", monitor=None, **_CHECKPOINT_OPTIONS)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: Lightning would delete the file that the checkpoint names as the one before."""


_CHECKPOINT_OPTIONS: dict[str, Any] = {
    "save_top_k": 1,
    "auto_insert_metric_name": False,  # val/acc in a file name would make folders
    "enable_version_counter": False,
    "save_on_train_epoch_end": True,
}


class SeedEveryBatch(Callback):
    """Dropout and MixUp depend on the seed, the epoch and the batch alone, so that a resumed run draws the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = seed_of(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        if trainer.strategy.root_device.type == "cpu":
            seed_cpu(seed)
        else:
            torch.manual_seed(seed)


class Bar(Callback):
    """One line at the bottom of a terminal: the epoch, how far the run is, and when it will be ready."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        each = float(trainer.num_training_batches)  # the time of validation shows in the speed
        known = (trainer.max_epochs or -1) > 0 and math.isfinite(each)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console(), transient=True)
        self._task = self._bar.add_task("", total=each * (trainer.max_epochs or 0) if known else None)
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        done = each * trainer.current_epoch + batches.processed
        self._bar.update(self._task, completed=done if known else 0)
        self.on_train_epoch_start(trainer, pl_module)  # which is not called in an epoch that is resumed
        self._bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            self._bar.update(self._task, description=f"epoch {trainer.current_epoch + 1}{of}")

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


LONG = 30
"""Seconds that are worth an announcement."""


def duration(seconds: float) -> str:
    """In words, to two digits or so.

    >>> duration(42), duration(1000), duration(8000)
    ('42 s', '17 min', '2 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class EpochLines(Checkpoint):
    """One line an epoch, with the best so far marked; the progress bar, if there is one, stays below it.

    A `Checkpoint` to be called after `History`, whose last row it prints.
    """

    def __init__(self, monitor: str, history: History) -> None:
        self.monitor, self.history = monitor, history

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        rows = self.history.rows
        say(epoch_line(rows, self.monitor, trainer.max_epochs))
        self._seen += 1
        left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        # the first epoch starts workers and fills caches: the second is like those to come
        if self._seen == min(2, left + 1) and left * rows[-1]["seconds"] >= LONG:
            say(
                f"          {left} more of about {rows[-1]['seconds']:.0f} s: ready in {duration(left * rows[-1]['seconds'])}"
            )


def epoch_line(rows: list[dict[str, Any]], monitor: str, max_epochs: int | None) -> str:
    """The last row of a history as text of at most 80 columns."""
    row = rows[-1]
    shown = []
    for split in ("train", "val"):
        if f"{split}/loss" in row:
            shown.append(f"{split} loss {row[f'{split}/loss']:.4f} acc {row[f'{split}/acc']:.4f}")
    of = f"/{max_epochs}" if max_epochs and max_epochs > 0 else ""
    mark = " *" if best_row(rows, monitor) is row else ""
    return f"epoch {row['epoch'] + 1}{of}  {'  '.join(shown)}  {row['seconds']:.1f} s{mark}"


def best_row(rows: list[dict[str, Any]], monitor: str) -> dict[str, Any] | None:
    """The first epoch with the best value of a metric."""
    candidates = [row for row in rows if monitor in row]
    pick = min if mode_of(monitor) == "min" else max
    return pick(candidates, key=lambda row: row[monitor], default=None)
