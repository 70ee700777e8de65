"""What a model is judged by, counted over all images of a split and never as means of batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
)
from torchmetrics.utilities.data import dim_zero_cat

EVALUATION_METRICS: dict[str, Callable[[int], Metric]] = {
    "acc": lambda n: MulticlassAccuracy(n, average="micro"),
    "f1": lambda n: MulticlassF1Score(n, average="macro"),
    "recall": lambda n: MulticlassRecall(n, average="none"),
    "auroc": lambda n: MulticlassAUROC(n, average="none"),
    "confusion_matrix": lambda n: MulticlassConfusionMatrix(n),
}
"""Name -> metric of so many classes. One value is logged, several are kept."""


def make_metrics(classes: int) -> MetricCollection:
    """All of them."""
    return MetricCollection({k: new(classes) for k, new in EVALUATION_METRICS.items()}, compute_groups=False)


def collect_predictions(metrics: Any) -> tuple[Tensor, Tensor]:
    """Probabilities (N, classes) and labels (N,) of what was counted, on the CPU: AUROC keeps them anyway.

    Over several processes those of the first come first. Every process must call it.
    """
    kept = metrics["auroc"]
    with kept.sync_context(dist_sync_fn=kept.dist_sync_fn):
        return dim_zero_cat(kept.preds).cpu(), dim_zero_cat(kept.target).cpu()


def compute_metrics(metrics: Any) -> dict[str, Tensor]:
    """All metrics, with AUROC as the mean over the classes for which it is defined, or left out."""
    confusion = metrics["confusion_matrix"].compute()
    support = confusion.sum(dim=1)
    defined = (support > 0) & (support < support.sum())
    values = {k: m.compute() for k, m in metrics.items() if k != "auroc" and k != "confusion_matrix"}
    if defined.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the classes that we leave out of the mean
            values["auroc"] = metrics["auroc"].compute()[defined].mean()
    else:
        metrics["auroc"].reset()
    return {**values, "confusion_matrix": confusion}


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of images whose label is among the `k` most probable classes; ties count for those that come first."""
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :k]
    return float((best == labels[:, None]).any(dim=1).double().mean())


def per_class_metrics(
    matrix: Sequence[Sequence[int]], classes: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """Precision, recall, F1 and number of images of each class; None where there is nothing to divide by.

    Args:
        matrix: counts, rows are the truth.
    """
    counts = torch.tensor(matrix)
    found = {}
    for i, name in enumerate(classes):
        right, true, said = (int(x) for x in (counts[i, i], counts[i].sum(), counts[:, i].sum()))
        found[name] = {
            "precision": right / said if said else None,
            "recall": right / true if true else None,
            "f1": 2 * right / (true + said) if true + said else None,
            "images": true,
        }
    return found
