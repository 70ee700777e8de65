"""Judging a model on images with labels: the numbers, and the files that keep them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.data import loaders
from finetune.inference.classifier import Classifier
from finetune.inference.eval_data import EvalDataset
from finetune.metrics import calibration, classification, statistics
from finetune.runtime import hardware
from finetune.runtime.console import progress_bar

BATCH = 32


class EvaluationResult(NamedTuple):
    """What came out."""

    values: dict[str, Any]
    """As `evaluation.json` holds them."""
    logits: Tensor
    """(N, classes) float32."""


def evaluate(
    model: Classifier, images: EvalDataset, k: int = 5, batch: int | None = None, workers: int | str = "auto"
) -> EvaluationResult:
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
        workers = hardware.default_num_workers(len(split), model.device.type == "cpu")
    loader: Any = DataLoader(
        loaders.ImageDataset(split, model.transform), batch, num_workers=int(workers), collate_fn=loaders.collate
    )
    logits = []
    for pixels, labels in progress_bar(loader, f"{len(split)} images", len(loader)):
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
        "acc_interval": list(statistics.wilson_interval(right, len(split))),
        f"top_{k}": classification.top_k_accuracy(every, labels, k),
        "f1": counted["f1"],
        "auroc": counted.get("auroc"),
        "loss": counted["loss"],
        **calibration.calibration(every, labels),
        "per_class": classification.per_class_metrics(counted["confusion_matrix"], model.classes),
        "confusion_matrix": counted["confusion_matrix"],
        "classes": model.classes,
        "what": images.what,
        "as_in_the_run": _compare_with_run(validated, counted) if images.of_the_run and split.name == "val" else None,
        "bad_files": len(images.bad_files),
        "device": model.device.type,
        "precision": model.precision,
        "versions": hardware.installed_versions(),
    }
    return EvaluationResult(values, every)


def _compare_with_run(validated: dict[str, Any], counted: dict[str, Any]) -> dict[str, Any] | None:
    """Accuracy and loss of the epoch in which the checkpoint was written, and whether they came out again."""
    then = validated.get("results") or {}
    if not all(isinstance(then.get(key), float) for key in ("acc", "loss")):
        return None
    same = then["acc"] == counted["acc"] and then["loss"] == counted["loss"]
    where = f"{validated.get('device')}, {validated.get('precision')}"
    if validated.get("processes", 1) > 1:
        where += f", {validated['processes']} processes"
    return {"same": same, "acc": then["acc"], "loss": then["loss"], "epoch": validated.get("epoch"), "device": where}
