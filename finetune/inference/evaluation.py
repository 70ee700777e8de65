"""Evaluate a model on images with labels."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from finetune.checkpoints.metadata import ValidationRecord
from finetune.data.splits import Split
from finetune.inference.classifier import BATCH, Classifier
from finetune.inference.eval_data import EvalDataset
from finetune.metrics import calibration, classification, statistics
from finetune.models.network import average_views
from finetune.runtime import hardware
from finetune.runtime.console import progress_bar


class EvaluationResult(NamedTuple):
    """The numbers of an evaluation, and what they come from."""

    values: dict[str, Any]
    """As `evaluation.json` holds them."""
    logits: Tensor
    """(N, classes) float32, divided by the temperature of the probabilities; of views, see `average_views`."""


def evaluate(
    model: Classifier,
    data: EvalDataset,
    k: int = 5,
    batch_size: int | None = None,
    num_workers: int | str = "auto",
    more: Mapping[str, Metric] | None = None,
) -> EvaluationResult:
    """Compute every number of a model on some images.

    Accuracy, log loss and macro F1 come from the metrics of the training, over the same batches: on the same kind of
    machine they are those of the epoch to the last digit. As there, log loss, calibration error and AUROC are without a
    temperature; `calibrated` has loss and calibration error with that of the model. Predictions are counted as `predict`
    labels them: only that of an image whose views disagree can depend on the temperature, which is applied to each view.

    Args:
        model: on its device, in its precision.
        data: the images.
        k: for top-k accuracy; clipped to the number of classes.
        batch_size: images of a batch; None is the run's own number.
        num_workers: processes that decode; "auto" looks at the cores and the number of images.
        more: further metrics of probabilities and labels, by name.
    """
    split, validation = data.split, model.module.metadata.validation
    plain, scaled = list[Tensor](), list[Tensor]()
    metrics = classification.ClassificationMetrics(len(model.classes), more).to(model.device)
    batches = model.batches(split, int(batch_size or validation.batch_size or BATCH), num_workers)
    for images, labels in progress_bar(batches, f"{len(split)} images", len(batches)):
        views = model.view_logits(images)
        plain.append(average_views(views))
        scaled.append(average_views(views, model.temperature))
        as_in_training = views.shape[1] == 1 or model.temperature == 1
        metrics.update((plain if as_in_training else scaled)[-1].to(model.device), labels.to(model.device))
    computed = {name: value.tolist() for name, value in metrics.compute().items()}
    plain_logits, logits, labels = torch.cat(plain), torch.cat(scaled), torch.tensor(split.labels)
    k = min(k, len(model.classes))
    matrix = computed["confusion_matrix"]
    correct = sum(matrix[i][i] for i in range(len(model.classes)))
    values = {
        "images": len(split),
        "correct": correct,
        "acc": computed["acc"],
        "acc_interval": list(statistics.wilson_interval(correct, len(split))),
        f"top_{k}": classification.top_k_accuracy(logits, labels, k),
        "f1": computed["f1"],
        "auroc": computed.get("auroc"),
        "loss": computed["loss"] if as_in_training else calibration.log_loss(plain_logits, labels),
        "metrics": {name: computed[name] for name in more or ()},
        **calibration.calibration(plain_logits, labels),
        "calibrated": {
            "temperature": model.temperature,
            "fitted_on": model.temperature_origin or None,
            "in_sample": _was_fitted_on(model, data),
            "loss": calibration.log_loss(logits, labels),
            "ece": calibration.ece(logits, labels),
        },
        "per_class": classification.per_class_metrics(matrix, model.classes),
        "confusion_matrix": matrix,
        "classes": model.classes,
        "description": data.description,
        "root": _root(split),
        "content": _content(split),
        "as_in_the_run": _compare_with_run(validation, computed) if data.is_holdout and split.name == "val" else None,
        "trained_on": data.trained_on,
        "near_duplicates": None if data.near_duplicates is None else len(data.near_duplicates),
        "bad_files": len(data.bad_files),
        "model": model.module.model_name,
        "device": model.device.type,
        "precision": model.precision,
        "versions": hardware.installed_versions(),
    }
    return EvaluationResult(values, logits)


def _was_fitted_on(model: Classifier, data: EvalDataset) -> bool:
    """Return whether the temperature was fitted on these images, so that they say too much good of it."""
    on_validation = bool(model.temperature_origin) and not model.module.metadata.calibration.out_of_fold
    return on_validation and data.is_holdout and data.split.name == "val"


def _root(split: Split) -> str | None:
    """Return the folder to which the names of the images are relative; None where they are no files of one folder."""
    roots = {path.removesuffix(key) for path, key in zip(split.load.paths or (), split.keys, strict=False)}
    root = roots.pop() if len(roots) == 1 else ""
    return os.path.abspath(root) if root.endswith(os.sep) else None


def _content(split: Split) -> str | None:
    """Return a digest of the sizes of the files, or of pixels, by which a comparison sees that others were evaluated."""
    record = split.record()
    if record.sizes is None:
        return record.content
    sizes = sorted(zip(record.keys, record.sizes, strict=True))
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def _compare_with_run(validation: ValidationRecord, computed: dict[str, Any]) -> dict[str, Any] | None:
    """Return accuracy and loss of the checkpoint's epoch, and whether they were computed again."""
    stored = validation.results
    if not all(isinstance(stored.get(key), float) for key in ("acc", "loss")):
        return None
    same = stored["acc"] == computed["acc"] and stored["loss"] == computed["loss"]
    where = f"{validation.device}, {validation.precision}"
    if (validation.processes or 1) > 1:
        where += f", {validation.processes} processes"
    return {"same": same, "acc": stored["acc"], "loss": stored["loss"], "epoch": validation.epoch, "device": where}
