"""Write and print the results of a run after its last epoch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from finetune.checkpoints.format import read_checkpoint
from finetune.data.datamodule import ImageDataModule
from finetune.inspection.finding import Finding
from finetune.io.files import write_json
from finetune.metrics import statistics
from finetune.models import network
from finetune.reporting import confusions, figures
from finetune.reporting.header import describe_device
from finetune.reporting.optimism import best_epoch_optimism, optimism_line
from finetune.runtime import hardware
from finetune.runtime.console import echo, echo_link, field_line, short_path
from finetune.runtime.timing import PhaseTimer
from finetune.training.callbacks import BestCheckpoint
from finetune.training.history import History, find_history
from finetune.training.lr_finder import find_lr_finder
from finetune.training.module import FineTuner
from finetune.training.out_of_fold import OutOfFoldValidation
from finetune.training.time_limit import find_time_limit


def evaluate_best(trainer: Trainer, module: FineTuner, data: ImageDataModule) -> None:
    """Evaluate the test split, where there is one, once, with the best checkpoint."""
    if "test" not in data.splits:
        return
    # every process has the path of the first one's, which decides: all of them must do the same
    best = Path(next(c for c in trainer.callbacks if isinstance(c, BestCheckpoint)).best_model_path)  # type: ignore[attr-defined]
    if trainer.strategy.broadcast(best.is_file()):
        # not by ckpt_path=: Lightning would restore the callbacks too, and with them the record of the best epoch
        module.load_state_dict(read_checkpoint(best).state_dict)
        trainer.test(module, datamodule=data, verbose=False)


def describe_interruption(folder: Path, all_is_saved: bool) -> str:
    """Say what was saved of a run that was interrupted, and how to go on with it.

    Args:
        folder: of the run.
        all_is_saved: whether the run had time to save its state.
    """
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return "interrupted before anything was saved"
    saved = "all up to here is saved" if all_is_saved else "what was saved last is kept"
    return f"interrupted; {saved}. Go on with\n  python -m finetune.train {shlex.quote(f'resume={short_path(folder)}')}"


def write_summary(
    trainer: Trainer,
    module: FineTuner,
    data: ImageDataModule,
    findings: Sequence[Finding],
    folder: Path,
    clock: PhaseTimer,
    command: Sequence[str],
    write_page: Callable[[Path, ImageDataModule], None] | None,
) -> float | None:
    """Write `metrics.json`, the plots and the page, and print the results.

    Args:
        trainer: after `fit`.
        module: the network.
        data: of the run.
        findings: what may spoil the result.
        folder: of the run.
        clock: of its phases.
        command: its words, to be typed again.
        write_page: writes the page of a run folder; None leaves out plots and page.

    Returns:
        The best value of the monitored metric; None if there is none.
    """
    history = find_history(trainer)
    best = history.best() or {}
    if trainer.is_global_zero:
        history.write()  # also where there was nothing left to train
        if write_page is not None and history.rows:
            with clock("plots"):
                _draw_plots(history, best.get("epoch"), data, folder / "plots")
                _draw_lr_finder(trainer, folder / "plots")
        values = summary_values(trainer, module, data, findings, clock, command)
        values["calibration"] = _calibration(folder / "checkpoints" / "best.ckpt")
        write_json(values, folder / "metrics.json")
        if write_page is not None and "val/acc" in best:
            write_page(folder, data)
        elif write_page is not None and best:
            text = f"the best epoch, by {history.monitor}, was not validated, so that there is no report."
            echo(field_line("Note", text))
        print_results(values, folder)
        if profile := trainer.profiler.summary():  # type: ignore[attr-defined]
            echo(profile)
    value = best.get(history.monitor)
    return None if value is None else float(value)


def summary_values(
    trainer: Trainer,
    module: FineTuner,
    data: ImageDataModule,
    findings: Sequence[Finding],
    clock: PhaseTimer,
    command: Sequence[str],
) -> dict[str, Any]:
    """Return what `metrics.json` holds; epochs count from 1."""
    history, limit, finder = find_history(trainer), find_time_limit(trainer), find_lr_finder(trainer)
    results, callbacks = history.best_results, trainer.callbacks  # type: ignore[attr-defined]
    return {
        "monitor": history.monitor,
        "eval": "kfold" if any(isinstance(c, OutOfFoldValidation) for c in callbacks) else "holdout",
        "best": history.best() or {},
        "best_epoch_optimism": best_epoch_optimism(history),
        "last": history.rows[-1] if history.rows else {},
        "test": {f"test/{k}": v for k, v in module.results.get("test", {}).items() if isinstance(v, float)},
        "per_class_recall": dict(zip(module.classes, results.get("per_class_recall", []), strict=False)),
        "confusion_matrix": results.get("confusion_matrix", []),
        "classes": module.classes,
        "n_train": len(data.splits["train"]),
        "n_val": len(data.splits["val"]),
        "n_test": len(data.splits.get("test", ())),
        "total_parameters": network.count_parameters(module.backbone),
        "trainable_parameters": network.count_parameters(module.backbone, module.schedule.ever_trainable_names()),
        "model": module.model_name,
        "weights": module.weights_source,
        "data": str(data.root.absolute()) if data.root is not None else data.record().dataset,
        "strategy": module.strategy.name,
        "groups": module.strategy_table(),
        **({"found_lr": finder.lr} if finder is not None else {}),
        "bad_files": len(data.bad_files),
        "findings": [finding.to_dict() for finding in findings],
        "seconds": {**clock.seconds(), "before": round(history.seconds_before, 3)},
        "features": history.features,
        **({"time_limit": limit.summary()} if limit is not None else {}),
        "device": describe_device(trainer),
        "versions": hardware.installed_versions(),
        "command": shlex.join(command),
    }


def _calibration(best: Path) -> dict[str, Any] | None:
    """Return what the best checkpoint says of its temperature; None where there is none."""
    if not best.is_file():
        return None
    record = read_checkpoint(best).metadata.calibration
    return {"temperature": record.temperature, "fitted_on": record.fitted_on or None, "problem": record.problem or None}


def _draw_plots(history: History, best: int | None, data: ImageDataModule, folder: Path) -> None:
    figures.save_curves(history.rows, folder / "curves.png", best)
    try:
        images, labels = data.sample(16)
        figures.save_samples(images, [data.classes[i] for i in labels], folder / "samples.png")
    except (OSError, ValueError) as error:  # the images are gone; the run is good without their picture
        echo(field_line("Note", f"plots/samples.png could not be drawn: {error}"))
    if history.best_results:
        matrix = history.best_results["confusion_matrix"]
        title = [] if data.splits["val"] else ["Training images, out of fold"]
        confusions.save_confusion_matrix(matrix, data.classes, folder / "confusion_matrix.png", *title)


def _draw_lr_finder(trainer: Trainer, folder: Path) -> None:
    finder = find_lr_finder(trainer)
    if finder is not None and finder.lr is not None and finder.curve is not None:
        curve = finder.curve
        figures.save_lr_finder(curve.rates, curve.losses, curve.smoothed(), finder.lr, folder / "lr_finder.png")


def print_results(values: dict[str, Any], folder: Path) -> None:
    """Print the results of a run, with paths that can be clicked.

    Args:
        values: as `metrics.json` holds them.
        folder: of the run.
    """
    echo("\n".join(result_lines(values)))
    for label, name in (("Report", "report.html"), ("Model", "checkpoints/best.ckpt")):
        if (folder / name).is_file():
            echo_link(label, folder / name)
    place = folder
    if not (folder / "checkpoints" / "best.ckpt").is_file():
        place = folder / "checkpoints" / "last.ckpt"
        steps = values["last"].get("step", 0)
        if not (place.is_file() and steps):
            echo(field_line("Note", "nothing was trained, and there is no model to use."))
            return
        text = f"{steps} steps were trained and never validated, so that there is no best epoch; their weights:"
        echo(field_line("Note", text))
        echo_link("Model", place)
    ckpt = shlex.quote(f"ckpt={short_path(place)}")
    echo(f"{'Next':<10}python -m finetune.predict {ckpt} source=IMAGES")


def result_lines(values: dict[str, Any]) -> list[str]:
    """Return accuracy and time of a run in a few lines; `values` are those of `metrics.json`."""
    best, seconds = values["best"], values["seconds"]
    lines = []
    if "val/acc" in best:
        n = sum(map(sum, values["confusion_matrix"])) or values["n_val"]
        correct = round(best["val/acc"] * n)
        low, high = statistics.wilson_interval(correct, n)
        text = f"val/acc {best['val/acc']:.4f}, {correct} of {n} correct (95 %: {low:.3f} to {high:.3f})"
        if values.get("eval") == "kfold":
            lines.append(
                field_line("Folds", f"{text}, each by a head that had not seen it; the model is of all images")
            )
        else:
            by = "" if values["monitor"] == "val/acc" else f", by {values['monitor']}"
            lines.append(field_line("Best", f"{text}, epoch {best['epoch']}{by}"))
        if luck := optimism_line(values, n):
            lines.append(field_line("", luck))
    if (calibration := values.get("calibration")) is not None:
        lines.append(field_line("Scaling", _describe_calibration(calibration)))
    if values["test"]:
        text = f"acc {values['test']['test/acc']:.4f} on {values['n_test']} images, with the best checkpoint"
        lines.append(field_line("Test", text))
    lines.append(field_line("Time", f"{seconds['total']:.0f} s, of which training {seconds.get('fit', 0):.0f} s"))
    return lines


def _describe_calibration(calibration: dict[str, Any]) -> str:
    """Say at which temperature the best checkpoint predicts, or why at none."""
    text = f"temperature {calibration['temperature']:.4g}"
    if calibration["problem"]:
        return f"{text}: {calibration['problem']}"
    if not calibration["fitted_on"]:
        return f"{text}: no held-out images belong to these weights"
    return f"{text}, fitted on {calibration['fitted_on']}: predict and evaluate divide the logits by it"
