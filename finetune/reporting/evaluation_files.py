"""Write and print the results of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.inference import prediction_table
from finetune.inference.classifier import Classifier
from finetune.inference.eval_data import EvalDataset
from finetune.inference.evaluation import EvaluationResult
from finetune.io.files import write_csv, write_json
from finetune.reporting import confusions, data_files
from finetune.runtime.console import echo, field_line, print_table, short_path

SHOWN_CLASSES = 20


def write_evaluation(
    model: Classifier, images: EvalDataset, result: EvaluationResult, folder: Path, report: bool
) -> None:
    """Write `evaluation.json`, `predictions.csv`, `confusion_matrix.csv` and, with `report`, its figure.

    Where some of the images look like training images, `near_duplicates.csv` lists them, with the number of bits in which
    their perceptual hashes differ.
    """
    values, split = result.values, images.split
    write_json(values, folder / "evaluation.json")
    if images.bad_files:
        data_files.write_bad_files(images.bad_files, folder / "bad_files.csv")
    if images.near_duplicates:
        labels = dict(zip(split.keys, split.labels, strict=True))
        near = [[key, model.classes[labels[key]], bits] for key, bits in images.near_duplicates.items()]
        write_csv(["path", "label", "bits"], near, folder / "near_duplicates.csv")
    k = min(5, len(model.classes))
    columns = prediction_table.column_names(k, "true", "correct")
    with prediction_table.open_table(folder / "predictions.csv", columns) as append:
        probabilities = result.logits.double().softmax(dim=1)
        for key, label, row in zip(split.keys, split.labels, probabilities, strict=True):
            predicted = prediction_table.prediction_row(key, row, model.classes, k)
            true = model.classes[label]
            append([{**predicted, "true": true, "correct": int(predicted["label"] == true)}])
    rows = [[name, *row] for name, row in zip(model.classes, values["confusion_matrix"], strict=True)]
    write_csv(["true \\ predicted", *model.classes], rows, folder / "confusion_matrix.csv")
    if report:
        title = f"{len(split)} {split.name} images"
        confusions.save_confusion_matrix(
            values["confusion_matrix"], model.classes, folder / "plots" / "confusion_matrix.png", title
        )


def print_evaluation(values: dict[str, Any], folder: Path) -> None:
    """Print the numbers of an evaluation on the terminal.

    Args:
        values: as `evaluation.json` holds them.
        folder: of the files.
    """
    low, high = values["acc_interval"]
    text = (
        f"{values['acc']:.4f}, {values['correct']} of {values['images']} correct; 95 % interval {low:.4f} to {high:.4f}"
    )
    echo(field_line("Accuracy", text))
    if (run := values["as_in_the_run"]) is not None:
        text = (
            "the same" if run["same"] else f"accuracy {run['acc']:.4f} and loss {run['loss']:.4f}, on {run['device']}"
        )
        where = "when the soup was made" if run["epoch"] is None else f"in epoch {run['epoch']} of the run"
        echo(field_line("", f"{where}: {text}"))
    top = next(name for name in values if name.startswith("top_"))
    auroc = f", AUROC {values['auroc']:.4f}" if values["auroc"] is not None else ""
    echo(field_line("Also", f"top-{top[4:]} {values[top]:.4f}, macro F1 {values['f1']:.4f}{auroc}"))
    if further := {name: value for name, value in values["metrics"].items() if isinstance(value, float)}:
        echo(field_line("Further", ", ".join(f"{name} {value:.4f}" for name, value in further.items())))
    echo(field_line("Log loss", _before_and_after(values, "loss", "log_loss_scaled")))
    echo(field_line("ECE", _before_and_after(values, "ece", "ece_scaled")))
    if (calibrated := values["calibrated"])["temperature"] != 1:
        echo(field_line("Scaled", _describe_calibrated(calibrated, values.get("tta", "none"))))
    rows = sorted(values["per_class"].items(), key=lambda item: item[1]["f1"] or 0.0)
    names = ["class", "images", "precision", "recall", "F1"]
    print_table("Per class, the worst first", names, [_cells(*row) for row in rows[:SHOWN_CLASSES]], len(names))
    if len(rows) > SHOWN_CLASSES:
        echo(f"... {len(rows) - SHOWN_CLASSES} more in evaluation.json")
    echo(field_line("Folder", short_path(folder)))
    echo(field_line("", "evaluation.json  predictions.csv  confusion_matrix.csv  plots/"))


def _before_and_after(values: dict[str, Any], before: str, after: str) -> str:
    if values[after] is None:
        return f"{values[before]:.4f}"
    return f"{values[before]:.4f}; after temperature scaling, out of sample, {values[after]:.4f} (T = {values['temperature']:.2f})"


def _describe_calibrated(calibrated: dict[str, Any], tta: str) -> str:
    """Say at which temperature the probabilities are, and which of the numbers are without it."""
    temperature, fitted_on = calibrated["temperature"], calibrated["fitted_on"]
    where = f"of the checkpoint (fitted on {fitted_on})" if fitted_on else "that was given"
    views = " of each view, before they are averaged" if tta != "none" else ""
    in_sample = ", in sample for these" if calibrated["in_sample"] else ""
    return (
        f"probabilities are softmax(logits / {temperature:.4g}){views}, by the temperature {where}: log loss "
        f"{calibrated['loss']:.4f}, ECE {calibrated['ece']:.4f}{in_sample}. Those above are without it, as val/loss of the run"
    )


def _cells(name: str, row: dict[str, Any]) -> Sequence[str]:
    shares = ["-" if row[key] is None else f"{row[key]:.4f}" for key in ("precision", "recall", "f1")]
    return [name, str(row["images"]), *shares]
