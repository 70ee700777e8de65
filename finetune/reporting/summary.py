"""What a run leaves: `split.csv`, `metrics.json`, and the lines at its end."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig

from finetune.checkpoints import format
from finetune.data.datamodule import ImageDataModule
from finetune.io.files import write_csv, write_json
from finetune.metrics import statistics
from finetune.models import network
from finetune.reporting import figures, run_report, runs
from finetune.reporting.evaluation_files import write_bad_files
from finetune.runtime import hardware
from finetune.runtime.console import echo, echo_link, field_line
from finetune.runtime.timing import PhaseTimer
from finetune.training.callbacks import BestCheckpoint
from finetune.training.history import History, best_epoch
from finetune.training.module import FineTuner


def write_split(data: ImageDataModule, path: Path) -> None:
    """`split.csv`: path, label and split of every image, so that the run can be judged and repeated."""
    rows = [
        (key, data.classes[label], split.name)
        for split in data.splits.values()
        for key, label in zip(split.keys, split.labels, strict=True)
    ]
    write_csv(["path", "label", "split"], rows, path)


def history_of(trainer: Trainer) -> History:
    """The run's record."""
    return next(c for c in trainer.callbacks if isinstance(c, History))  # type: ignore[attr-defined]


def summarize(
    trainer: Trainer, module: FineTuner, data: ImageDataModule, monitor: str, clock: PhaseTimer, command: list[str]
) -> dict[str, Any]:
    """What goes into `metrics.json`."""
    record = history_of(trainer)
    best = best_epoch(record.rows, monitor) or {}
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
        "total_parameters": network.count_parameters(module.backbone),
        "trainable_parameters": network.count_parameters(module.backbone, learning),
        "model": module.hparams["model"],
        "weights": module.source,
        "data": str(data.root.absolute()) if data.root is not None else data.description()["dataset"],
        "strategy": module.strategy.name,
        "groups": module.strategy_table(),
        "bad_files": len(data.bad_files),
        "findings": [finding.to_dict() for finding in data.findings],
        "seconds": clock.seconds(),
        "device": device_line(trainer),
        "versions": hardware.installed_versions(),
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


def _explain_device(trainer: Trainer, data: ImageDataModule) -> str:
    """Why that precision, and who decodes."""
    device = trainer.strategy.root_device.type
    native = hardware.native_precision(device)
    if str(trainer.precision) != native:
        why = f"{native} is native here" if native != "32-true" else "no 16-bit arithmetic is native here"
    else:
        why = "native here" if native != "32-true" else "nothing shorter is native here"
    workers = data.workers()
    if workers:
        return f"({why}); {workers} worker processes decode"
    if data.num_workers == "auto" and hardware.free_shared_memory() < hardware.SHARED_BYTES:
        return f"({why}); images are decoded in the main process (/dev/shm is too small for workers)"
    few = " (the cores are for the network)" if device == "cpu" and data.num_workers == "auto" else ""
    return f"({why}); images are decoded in the main process{few}"


def data_lines(data: ImageDataModule) -> list[str]:
    """What the data are, for the terminal."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    counts = data.splits["train"].counts(data.classes)
    named = ", ".join(f"{name} {n}" for name, n in list(counts.items())[:8])
    more = f", ... {len(counts) - 8} more" if len(counts) > 8 else ""
    lines = [
        field_line("Data", f"{data.root or ''} - {sizes} images"),
        field_line("Classes", f"{len(counts)}, with training images: {named}{more}"),
    ]
    if data.bad_files:
        lines.append(field_line("Left out", f"{len(data.bad_files)} unreadable files (bad_files.csv lists them):"))
        lines += [f"          {path}: {reason}" for path, reason in sorted(data.bad_files.items())[:5]]
    return lines + [field_line("Note", note) for note in data.notes]


def model_lines(module: FineTuner) -> list[str]:
    """What the model is, for the terminal."""
    total = network.count_parameters(module.backbone)
    learning = network.count_parameters(module.backbone, module.learning_names())
    size = module.preprocess.size
    ignored = "" if module.strategy.pretrained else f" (strategy {module.strategy.name} ignores model.weights)"
    lines = [
        field_line(
            "Model", f"{module.hparams['model']}, {size} x {size} pixels; {learning:,} of {total:,} parameters learn"
        ),
        field_line("Weights", module.source + ignored),
    ]
    if module.source == "random weights" and not module.ever_trunk_moves():
        lines.append(field_line("Note", "the trunk is frozen at random weights: expect little; give model.weights."))
    return lines


def finding_lines(data: ImageDataModule) -> list[str]:
    """What may spoil the result, for the terminal."""
    lines = [field_line(finding.level.capitalize(), finding.says) for finding in data.findings]
    if lines and data.root is not None:
        root = shlex.quote(f"data.root={data.root}")
        lines.append(field_line("", f"see them: python -m finetune.check {root}"))
    return lines


def end_lines(values: dict[str, Any], judged: int) -> list[str]:
    """The end of a run in a few lines, before the paths."""
    best, seconds = values["best"], values["seconds"]
    lines = []
    if "val/acc" in best:
        right = round(best["val/acc"] * judged)
        low, high = statistics.wilson_interval(right, judged)
        text = f"val/acc {best['val/acc']:.4f}, {right} of {judged} right (95 %: {low:.3f} to {high:.3f})"
        by = "" if values["monitor"] == "val/acc" else f", by {values['monitor']}"
        lines.append(field_line("Best", f"{text}, epoch {best['epoch'] + 1}{by}"))
    if values["test"]:
        text = f"acc {values['test']['test/acc']:.4f} on {values['n_test']} images, with the best checkpoint"
        lines.append(field_line("Test", text))
    lines.append(field_line("Time", f"{seconds['total']:.0f} s, of which training {seconds.get('fit', 0):.0f} s"))
    return lines


def print_end(values: dict[str, Any], judged: int, folder: Path) -> None:
    """Print the end of a run, with paths that can be clicked."""
    echo("\n".join(end_lines(values, judged)))
    for label, name in (("Report", "report.html"), ("Model", "checkpoints/best.ckpt")):
        if (folder / name).is_file():
            echo_link(label, folder / name)
    if not (folder / "checkpoints" / "best.ckpt").is_file():
        echo(field_line("Note", "nothing was trained, and there is no model to use."))
        return
    ckpt = shlex.quote(f"ckpt={folder}")
    print(f"{'Next':<10}python -m finetune.predict {ckpt} source=PICTURES", flush=True)


# --- the steps of a run ------------------------------------------------------------------------------------------


def print_header(trainer: Trainer, module: FineTuner, data: ImageDataModule, folder: Path, report: bool) -> None:
    """Before the first epoch: what is trained on what, and (with `report`) a picture of a training batch."""
    if not trainer.is_global_zero:
        return
    data.trainer = trainer  # Lightning would set it in a moment; the number of workers depends on the device
    lines = [*data_lines(data), *finding_lines(data), *model_lines(module)]
    if trainer.max_epochs == -1:
        lines.append(field_line("Note", "no end was given (trainer.max_epochs=-1): Ctrl-C ends the run and saves it."))
    echo("\n".join([*lines, field_line("Device", f"{device_line(trainer)} {_explain_device(trainer, data)}")]))
    write_split(data, folder / "split.csv")
    if data.bad_files:
        write_bad_files(data.bad_files, folder / "bad_files.csv")
    if report:
        data.plain_epochs = module.plain_epochs(trainer.max_epochs)
        images, labels = data.sample(16)
        figures.save_samples(images, [module.classes[i] for i in labels], folder / "plots" / "samples.png")


def how_to_resume(folder: Path, all_is_saved: bool) -> str:
    """What to do after an interruption, which was waited for or not."""
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return "interrupted before anything was saved"
    what = "all up to here is saved" if all_is_saved else "what was saved last is kept"
    return f"interrupted; {what}. Go on with\n  python -m finetune.train {shlex.quote(f'resume={folder}')}"


def test_best(trainer: Trainer, module: FineTuner, data: ImageDataModule) -> None:
    """Evaluate the test split, where there is one, once, with the best checkpoint."""
    if "test" not in data.splits:
        return
    # every process has the path of the first one's, which decides: all of them must do the same
    best = Path(next(c for c in trainer.callbacks if isinstance(c, BestCheckpoint)).best_model_path)  # type: ignore[attr-defined]
    if trainer.strategy.broadcast(best.is_file()):
        # not by ckpt_path=: Lightning would restore the callbacks too, and with them the record of the best epoch
        stored = format.read_checkpoint(best)
        module.load_state_dict(stored["state_dict"])
        module.evaluate_as(stored[format.METADATA]["validated"])
        trainer.test(module, datamodule=data, verbose=False)


def write_report(folder: Path, data: ImageDataModule) -> None:
    """`report.html`; a run is good without it."""
    try:
        run_report.write_report(runs.read_run(folder), data.splits["val"])
    except Exception as error:
        if os.environ.get("FINETUNE_DEBUG") == "1":
            raise
        text = f"could not be written ({type(error).__name__}: {error}); python -m finetune.report {folder} tries again"
        echo(field_line("Report", text))


def write_summary(
    trainer: Trainer,
    module: FineTuner,
    data: ImageDataModule,
    folder: Path,
    cfg: DictConfig,
    clock: PhaseTimer,
    command: list[str],
) -> float | None:
    """Write `metrics.json` and the plots, print the end, and return the best value of the monitored metric."""
    record = history_of(trainer)
    if trainer.is_global_zero:
        record.write()  # also where there was nothing left to train
        if cfg.report and record.rows:
            with clock("plots"):
                marked = (best_epoch(record.rows, cfg.monitor) or {}).get("epoch")
                figures.save_curves(record.rows, folder / "plots" / "curves.png", marked)
                if record.best_results:
                    matrix = record.best_results["confusion_matrix"]
                    figures.save_confusion_matrix(matrix, module.classes, folder / "plots" / "confusion_matrix.png")
        values = summarize(trainer, module, data, cfg.monitor, clock, command)
        write_json(values, folder / "metrics.json")
        if cfg.report and record.rows:
            write_report(folder, data)
        print_end(values, sum(map(sum, values["confusion_matrix"])) or values["n_val"], folder)
    best = (best_epoch(record.rows, cfg.monitor) or {}).get(cfg.monitor)
    return None if best is None else float(best)
