"""Judging a model on images with labels: the numbers, and the files that keep them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune import answers, loaders, machine, plots, results, scores
from finetune.checkpoint import write_csv, write_json
from finetune.classifier import Classifier
from finetune.console import entry, print_table, progress, say
from finetune.held_out import HeldOut

BATCH = 32
SHOWN_CLASSES = 20


class Judgement(NamedTuple):
    """What came out."""

    values: dict[str, Any]
    """As `evaluation.json` holds them."""
    logits: Tensor
    """(N, classes) float32."""


def judge(
    model: Classifier, images: HeldOut, k: int = 5, batch: int | None = None, workers: int | str = "auto"
) -> Judgement:
    """Every number of a model on some images.

    Accuracy, log loss and macro F1 are counted by what counts them in training, over the same batches: on the same
    kind of machine they are those of the epoch to the last digit.

    Args:
        k: for top-k accuracy; clipped to the number of classes.
        batch: images at a time; None is the run's own number.
        workers: processes that decode; "auto" looks at the cores and the number of images.
    """
    module, split = model.module, images.split
    validated = module.about.get("validated") or {}
    batch = int(batch or validated.get("batch_size") or BATCH)
    if workers == "auto":
        workers = machine.workers(len(split), model.device.type == "cpu")
    loader: Any = DataLoader(
        loaders.ImageDataset(split, model.transform), batch, num_workers=int(workers), collate_fn=loaders.collate
    )
    logits = []
    for pixels, labels in progress(loader, f"{len(split)} images", len(loader)):
        logits.append(model.logits(pixels))
        module.judge(logits[-1].to(model.device), labels.to(model.device), "val")
    counted = {name: value.tolist() for name, value in module.conclude("val").items()}
    every, labels = torch.cat(logits), torch.tensor(split.labels)
    k = min(k, len(model.classes))
    right = sum(counted["confusion_matrix"][i][i] for i in range(len(model.classes)))
    values = {
        "images": len(split),
        "right": right,
        "acc": counted["acc"],
        "acc_interval": list(scores.wilson(right, len(split))),
        f"top_{k}": scores.top_k(every, labels, k),
        "f1": counted["f1"],
        "auroc": counted.get("auroc"),
        "loss": counted["loss"],
        **scores.calibration(every, labels),
        "per_class": scores.per_class(counted["confusion_matrix"], model.classes),
        "confusion_matrix": counted["confusion_matrix"],
        "classes": model.classes,
        "what": images.what,
        "as_in_the_run": _compared(validated, counted) if images.of_the_run and split.name == "val" else None,
        "bad_files": len(images.bad_files),
        "device": model.device.type,
        "precision": model.precision,
        "versions": machine.versions(),
    }
    return Judgement(values, every)


def _compared(validated: dict[str, Any], counted: dict[str, Any]) -> dict[str, Any] | None:
    """Accuracy and loss of the epoch in which the checkpoint was written, and whether they came out again."""
    then = validated.get("results") or {}
    if not all(isinstance(then.get(key), float) for key in ("acc", "loss")):
        return None
    same = then["acc"] == counted["acc"] and then["loss"] == counted["loss"]
    where = f"{validated.get('device')}, {validated.get('precision')}"
    if validated.get("processes", 1) > 1:
        where += f", {validated['processes']} processes"
    return {"same": same, "acc": then["acc"], "loss": then["loss"], "epoch": validated.get("epoch"), "device": where}


def write(model: Classifier, images: HeldOut, judgement: Judgement, folder: Path, report: bool) -> None:
    """`evaluation.json`, `predictions.csv`, `confusion_matrix.csv` and its picture."""
    values, split = judgement.values, images.split
    write_json(values, folder / "evaluation.json")
    if images.bad_files:
        results.write_bad_files(images.bad_files, folder / "bad_files.csv")
    k = min(5, len(model.classes))
    with answers.table(folder / "predictions.csv", answers.columns(k, "true", "correct")) as append:
        probabilities = judgement.logits.double().softmax(dim=1)
        for key, label, row in zip(split.keys, split.labels, probabilities, strict=True):
            said = answers.answer(key, row, model.classes, k)
            append([{**said, "true": model.classes[label], "correct": int(said["label"] == model.classes[label])}])
    rows = [[name, *row] for name, row in zip(model.classes, values["confusion_matrix"], strict=True)]
    write_csv(["true \\ predicted", *model.classes], rows, folder / "confusion_matrix.csv")
    if report:
        title = f"{len(split)} {split.name} images"
        plots.confusion_matrix(
            values["confusion_matrix"], model.classes, folder / "plots" / "confusion_matrix.png", title
        )


def show(values: dict[str, Any], folder: Path) -> None:
    """The numbers on the terminal."""
    low, high = values["acc_interval"]
    say(
        entry(
            "Accuracy",
            f"{values['acc']:.4f}, {values['right']} of {values['images']} right; 95 % interval {low:.4f} to {high:.4f}",
        )
    )
    if (then := values["as_in_the_run"]) is not None:
        again = (
            "the same" if then["same"] else f"then {then['acc']:.4f} and loss {then['loss']:.4f}, on {then['device']}"
        )
        say(entry("", f"in epoch {then['epoch'] + 1} of the run: {again}"))
    top = next(name for name in values if name.startswith("top_"))
    auroc = f", AUROC {values['auroc']:.4f}" if values["auroc"] is not None else ""
    say(entry("Also", f"top-{top[4:]} {values[top]:.4f}, macro F1 {values['f1']:.4f}{auroc}"))
    say(entry("Log loss", _before_and_after(values, "loss", "log_loss_scaled")))
    say(entry("ECE", _before_and_after(values, "ece", "ece_scaled")))
    rows = sorted(values["per_class"].items(), key=lambda item: item[1]["f1"] or 0.0)
    names = ["class", "images", "precision", "recall", "F1"]
    print_table("Per class, the worst first", names, [_cells(*row) for row in rows[:SHOWN_CLASSES]], len(names))
    if len(rows) > SHOWN_CLASSES:
        say(f"... {len(rows) - SHOWN_CLASSES} more in evaluation.json")
    say(entry("Folder", str(folder)))
    say(entry("", "evaluation.json  predictions.csv  confusion_matrix.csv  plots/"))


def _before_and_after(values: dict[str, Any], before: str, after: str) -> str:
    if values[after] is None:
        return f"{values[before]:.4f}"
    return f"{values[before]:.4f}; after temperature scaling, out of sample, {values[after]:.4f} (T = {values['temperature']:.2f})"


def _cells(name: str, row: dict[str, Any]) -> Sequence[str]:
    shares = ["-" if row[key] is None else f"{row[key]:.4f}" for key in ("precision", "recall", "f1")]
    return [name, str(row["images"]), *shares]
