"""What a run leaves: `split.csv`, `metrics.json`, and the lines at its end."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig

from finetune import checkpoint, machine, plots, report, runs, strategy
from finetune.callbacks import History, best_row
from finetune.checkpoint import write_csv, write_json
from finetune.console import entry, say
from finetune.data import ImageDataModule
from finetune.module import FineTuner


class Clock:
    """Seconds of each phase of a run."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Total and phases, rounded."""
        total = time.perf_counter() - self._began
        return {k: round(v, 3) for k, v in {"total": total, **self.phases}.items()}


def write_split(data: ImageDataModule, path: Path) -> None:
    """`split.csv`: path, label and split of every image, so that the run can be judged and repeated."""
    rows = [
        (key, data.classes[label], split.name)
        for split in data.splits.values()
        for key, label in zip(split.keys, split.labels, strict=True)
    ]
    write_csv(["path", "label", "split"], rows, path)


def write_bad_files(bad_files: Mapping[str, str], path: Path) -> None:
    """`bad_files.csv`: what was left out and why."""
    write_csv(["path", "reason"], sorted(bad_files.items()), path)


def history(trainer: Trainer) -> History:
    """The run's record."""
    return next(c for c in trainer.callbacks if isinstance(c, History))  # type: ignore[attr-defined]


def metrics(
    trainer: Trainer, module: FineTuner, data: ImageDataModule, monitor: str, clock: Clock, command: list[str]
) -> dict[str, Any]:
    """What goes into `metrics.json`."""
    record = history(trainer)
    best = best_row(record.rows, monitor) or {}
    per_class = dict(zip(module.classes, record.best_results.get("recall", []), strict=False))
    learning = module.learning_names()
    return {
        "monitor": monitor,
        "best": best,
        "last": record.rows[-1] if record.rows else {},
        "test": {f"test/{k}": v for k, v in module.results.get("test", {}).items() if isinstance(v, float)},
        "recall": per_class,
        "confusion_matrix": record.best_results.get("confusion_matrix", []),
        "classes": module.classes,
        "n_train": len(data.splits["train"]),
        "n_val": len(data.splits["val"]),
        "n_test": len(data.splits.get("test", ())),
        "total_parameters": strategy.count(module.backbone),
        "trainable_parameters": strategy.count(module.backbone, learning),
        "model": module.hparams["model"],
        "weights": module.source,
        "data": str(data.root.absolute()) if data.root is not None else data.description()["dataset"],
        "strategy": module.strategy.name,
        "groups": module.strategy_table(),
        "bad_files": len(data.bad_files),
        "findings": [finding.to_dict() for finding in data.findings],
        "seconds": clock.seconds(),
        "device": device_line(trainer),
        "versions": machine.versions(),
        "command": shlex.join(command),
    }


def device_line(trainer: Trainer) -> str:
    """Where and how the run computes."""
    import torch

    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    ranks = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    return f"{name}{threads}{ranks}, precision {trainer.precision}"


def data_lines(data: ImageDataModule) -> list[str]:
    """What the data are, for the terminal."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    counts = data.splits["train"].counts(data.classes)
    named = ", ".join(f"{name} {n}" for name, n in list(counts.items())[:8])
    more = f", ... {len(counts) - 8} more" if len(counts) > 8 else ""
    lines = [
        entry("Data", f"{data.root or ''} - {sizes} images"),
        entry("Classes", f"{len(counts)}, with training images: {named}{more}"),
    ]
    if data.bad_files:
        lines.append(entry("Left out", f"{len(data.bad_files)} unreadable files (bad_files.csv lists them):"))
        lines += [f"          {path}: {reason}" for path, reason in sorted(data.bad_files.items())[:5]]
    return lines + [entry("Note", note) for note in data.notes]


def model_lines(module: FineTuner) -> list[str]:
    """What the model is, for the terminal."""
    total = strategy.count(module.backbone)
    learning = strategy.count(module.backbone, module.learning_names())
    size = module.preprocess.size
    ignored = "" if module.strategy.pretrained else f" (strategy {module.strategy.name} ignores model.weights)"
    lines = [
        entry(
            "Model", f"{module.hparams['model']}, {size} x {size} pixels; {learning:,} of {total:,} parameters learn"
        ),
        entry("Weights", module.source + ignored),
    ]
    if module.source == "random weights" and not module.ever_trunk_moves():
        lines.append(entry("Note", "the trunk is frozen at random weights: expect little; give model.weights."))
    return lines


def end_lines(values: dict[str, Any], folder: Path) -> list[str]:
    """The end of a run in a few lines."""
    best, n, seconds = values["best"], values["n_val"], values["seconds"]
    lines = []
    if "val/acc" in best:
        right = round(best["val/acc"] * n)
        lines.append(entry("Best", f"{right} of {n} right: val/acc {best['val/acc']:.4f} in epoch {best['epoch'] + 1}"))
    if values["test"]:
        text = f"acc {values['test']['test/acc']:.4f} on {values['n_test']} images, with the best checkpoint"
        lines.append(entry("Test", text))
    lines.append(entry("Time", f"{seconds['total']:.0f} s, of which training {seconds.get('fit', 0):.0f} s"))
    lines.append(entry("Folder", str(folder)))
    lines.append(entry("", "checkpoints/best.ckpt  metrics.csv  metrics.json  plots/"))
    return lines


# --- the steps of a run ------------------------------------------------------------------------------------------


def introduce(trainer: Trainer, module: FineTuner, data: ImageDataModule, folder: Path, report: bool) -> None:
    """Before the first epoch: what is trained on what, and (with `report`) a picture of a training batch."""
    if not trainer.is_global_zero:
        return
    data.trainer = trainer  # Lightning would set it in a moment; the number of workers depends on the device
    workers = f"{data.workers()} worker processes" if data.workers() else "images decoded in the main process"
    lines = [*data_lines(data), *model_lines(module), entry("Device", f"{device_line(trainer)}; {workers}")]
    say("\n".join(lines))
    write_split(data, folder / "split.csv")
    if data.bad_files:
        write_bad_files(data.bad_files, folder / "bad_files.csv")
    if report:
        data.plain_epochs = module.plain_epochs(trainer.max_epochs)
        images, labels = data.sample(16)
        plots.samples(images, [module.classes[i] for i in labels], folder / "plots" / "samples.png")


def how_to_resume(folder: Path) -> str:
    """What to do after an interruption."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "interrupted before the end of the first epoch; nothing was saved"
    return f"interrupted; the last finished epoch is saved. Go on with the same command and\n  ckpt_path={last}"


def test_best(trainer: Trainer, module: FineTuner, data: ImageDataModule, folder: Path) -> None:
    """Evaluate the test split, where there is one, once, with the best checkpoint."""
    best = folder / "checkpoints" / "best.ckpt"
    if "test" in data.splits and best.exists():
        # not by ckpt_path=: Lightning would restore the callbacks too, and with them the record of the best epoch
        stored = checkpoint.read(best)
        module.load_state_dict(stored["state_dict"])
        module.evaluate_as(stored[checkpoint.ABOUT]["validated"])
        trainer.test(module, datamodule=data, verbose=False)


def write_report(folder: Path, data: ImageDataModule) -> None:
    """`report.html`; a run is good without it."""
    try:
        report.write(runs.read(folder), data.splits["val"])
    except Exception as error:
        if os.environ.get("FINETUNE_DEBUG") == "1":
            raise
        text = f"could not be written ({type(error).__name__}: {error}); python -m finetune.report {folder} tries again"
        say(entry("Report", text))


def finish(
    trainer: Trainer,
    module: FineTuner,
    data: ImageDataModule,
    folder: Path,
    cfg: DictConfig,
    clock: Clock,
    command: list[str],
) -> float | None:
    """Write `metrics.json` and the plots, print the end, and return the best value of the monitored metric."""
    record = history(trainer)
    if trainer.is_global_zero:
        record.write()  # also where there was nothing left to train
        if cfg.report and record.rows:
            with clock("plots"):
                best_epoch = (best_row(record.rows, cfg.monitor) or {}).get("epoch")
                plots.curves(record.rows, folder / "plots" / "curves.png", best_epoch)
                if record.best_results:
                    matrix = record.best_results["confusion_matrix"]
                    plots.confusion_matrix(matrix, module.classes, folder / "plots" / "confusion_matrix.png")
        values = metrics(trainer, module, data, cfg.monitor, clock, command)
        write_json(values, folder / "metrics.json")
        if cfg.report and record.rows:
            write_report(folder, data)
        say("\n".join(end_lines(values, folder)))
    best = (best_row(record.rows, cfg.monitor) or {}).get(cfg.monitor)
    return None if best is None else float(best)
