"""Compute classification metrics over all images of a split, never as means of batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
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
    "per_class_recall": lambda n: MulticlassRecall(n, average="none"),
    "auroc": lambda n: MulticlassAUROC(n, average="none"),
    "confusion_matrix": lambda n: MulticlassConfusionMatrix(n),
}
"""Name to a function that makes the metric for a number of classes. A metric with one value is logged."""


class ClassificationMetrics(nn.Module):
    """The log loss and every metric of `EVALUATION_METRICS`, over all images of a split and all processes."""

    def __init__(self, num_classes: int, more: Mapping[str, Metric] | None = None) -> None:
        """Make the metrics for a number of classes; `more` are further ones of probabilities and labels, by name.

        Raises:
            ValueError: a name is taken or is no name, or a value is no metric.
        """
        super().__init__()
        metrics: dict[str, Metric | MetricCollection] = {k: make(num_classes) for k, make in EVALUATION_METRICS.items()}
        self.more = tuple(more or ())
        for name, metric in (more or {}).items():
            if name in (*metrics, "loss") or not name.isidentifier():
                raise ValueError(f"metrics: {name!r} is taken or no name; there are {', '.join(['loss', *metrics])}.")
            if not isinstance(metric, Metric):
                raise ValueError(f"metrics: {name} must be a torchmetrics Metric, got a {type(metric).__name__}.")
            metrics[name] = metric.clone()
            _require_takes(name, metric.clone(), num_classes)
        self.loss = MeanMetric()
        self.metrics = MetricCollection(metrics, compute_groups=False)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of logits (N, classes) and labels (N,)."""
        # the plain log loss, without smoothing and class weights, so that runs can be compared
        self.loss.update(nn.functional.cross_entropy(logits, labels), weight=len(labels))
        self.metrics.update(logits.softmax(dim=1), labels)

    def compute(self) -> dict[str, Tensor]:
        """Return every metric, with AUROC as the mean over the classes for which it is defined, or left out."""
        confusion: Tensor = self._metric("confusion_matrix").compute()
        support = confusion.sum(dim=1)
        defined = (support > 0) & (support < support.sum())
        names = [name for name in (*EVALUATION_METRICS, *self.more) if name not in ("auroc", "confusion_matrix")]
        values: dict[str, Tensor] = {"loss": self.loss.compute()}
        values |= {name: self._metric(name).compute() for name in names}
        if defined.any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the classes that the mean leaves out
                values["auroc"] = self._metric("auroc").compute()[defined].mean()
        return {**values, "confusion_matrix": confusion}

    @property
    def update_called(self) -> bool:
        """Return whether anything was counted since the last reset."""
        return bool(self.loss.update_called)

    def reset(self) -> None:
        """Forget what was counted."""
        self.loss.reset()
        self.metrics.reset()

    def predictions(self) -> tuple[Tensor, Tensor]:
        """Return the probabilities (N, classes) and labels (N,) that were counted, on the CPU.

        AUROC keeps them anyway. Over several processes those of the first come first, and every process must call it.
        """
        auroc = self._metric("auroc")
        with auroc.sync_context(dist_sync_fn=auroc.dist_sync_fn):
            return dim_zero_cat(auroc.preds).cpu(), dim_zero_cat(auroc.target).cpu()

    def _metric(self, name: str) -> Any:
        return self.metrics[name]


def _require_takes(name: str, metric: Metric, num_classes: int) -> None:
    """Try a further metric on one sure prediction of each class."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric.cpu().update(torch.eye(num_classes), torch.arange(num_classes))
            value = metric.compute()
    # what it raises is up to the metric
    except Exception as error:
        raise ValueError(
            f"metrics: {name} does not take probabilities (N, {num_classes}) and labels (N,): {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(value, Tensor):
        raise ValueError(f"metrics: {name} computes a {type(value).__name__}; give one that computes a tensor.")


class SplitMetrics(nn.Module):
    """The metrics of each split, and of each further loader of one, made when they are first asked for."""

    def __init__(self, num_classes: int, more: Mapping[str, Metric] | None = None) -> None:
        """Name the classes and further metrics; see `ClassificationMetrics`."""
        super().__init__()
        self.num_classes = num_classes
        self.more = dict(more or {})
        self.of_split = nn.ModuleDict()
        self["val"], self["test"]

    def __getitem__(self, split: str) -> ClassificationMetrics:
        if split not in self.of_split:
            device: Any = next((metrics.loss.device for metrics in self.of_split.values()), None)
            with torch.inference_mode(False):
                self.of_split[split] = ClassificationMetrics(self.num_classes, self.more).to(device)
        metrics: Any = self.of_split[split]
        found: ClassificationMetrics = metrics
        return found

    def started(self, split: str) -> list[str]:
        """Return the names under which something was counted: the split, and its further loaders."""
        return [n for n in self.of_split if n.split("/")[0] == split and self[n].update_called]

    def scalars(self, split: str) -> dict[str, Tensor]:
        """Compute the metrics of one value of what was counted for a split so far, by the names under which they are logged."""
        computed = {name: self[name].compute() for name in self.started(split)}
        return {
            f"{n}/{metric}": value
            for n, values in computed.items()
            for metric, value in values.items()
            if value.ndim == 0
        }

    def finish(self, split: str) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
        """Compute and reset what was counted for a split.

        Returns:
            All metrics as plain values, by the names of `started`; and those with one value, as they are logged.
        """
        results: dict[str, dict[str, Any]] = {}
        scalars: dict[str, Tensor] = {}
        for name in self.started(split):
            values = self[name].compute()
            with torch.inference_mode(False):  # else a training could not count on after `trainer.validate`
                self[name].reset()
            results[name] = {metric: value.tolist() for metric, value in values.items()}
            scalars |= {f"{name}/{metric}": value for metric, value in values.items() if value.ndim == 0}
        return results, scalars

    def monitor_mode(self, monitor: str) -> str:
        """Return "min" where less of a logged metric is better, else "max".

        Raises:
            ValueError: a further metric does not say which.
        """
        metric = self.more.get(monitor.rpartition("/")[2])
        if metric is None:
            return monitor_mode(monitor)
        if metric.higher_is_better is None:
            raise ValueError(f"monitor={monitor}: {type(metric).__name__} does not say whether more of it is better.")
        return "max" if metric.higher_is_better else "min"


def monitor_mode(monitor: str) -> str:
    """Return "min" where less of a metric is better, else "max", as its name says."""
    return "min" if monitor.endswith("loss") else "max"


class TrainingMetrics(nn.Module):
    """The loss and the accuracy of the training batches of an epoch."""

    def __init__(self, num_classes: int) -> None:
        """Make the metrics for a number of classes."""
        super().__init__()
        self.loss = MeanMetric()
        self.acc = MulticlassAccuracy(num_classes, average="micro")
        self.is_counting = True
        """Whether `update` counts; not while a batch is computed once more."""

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor, images: Tensor | int) -> None:
        """Count a batch.

        Args:
            loss: mean loss of the batch.
            logits: (N, classes).
            labels: (N,).
            images: how many images the loss is the mean of.
        """
        if self.is_counting:
            self.loss.update(loss.detach(), weight=images)
            self.acc.update(logits.detach(), labels)

    def compute(self) -> dict[str, Tensor]:
        """Return loss and accuracy."""
        return {name: metric.compute() for name, metric in self._named()}

    def reset(self) -> None:
        """Forget what was counted."""
        for _, metric in self._named():
            metric.reset()

    @property
    def update_called(self) -> bool:
        """Return whether anything was counted since the last reset."""
        return bool(self.loss.update_called)

    def metric_state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state so far, summed over all processes; each of them must call it."""
        state = {}
        for name, metric in self._named():
            with metric.sync_context():
                state[name] = {key: getattr(metric, key).detach().cpu().clone() for key in metric._defaults}
        return state

    def restore_metric_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Count on from what `metric_state` returned; from nothing where it is empty."""
        for name, metric in self._named():
            for key, value in state.get(name, {}).items():
                if key in metric._defaults:
                    setattr(metric, key, value.to(metric.device))
            metric._update_count = 1  # else it warns of a result without data

    def _named(self) -> list[tuple[str, Metric]]:
        return [("loss", self.loss), ("acc", self.acc)]


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return the share of images whose label is among the `k` most probable classes; of ties the first count."""
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :k]
    return float((best == labels[:, None]).any(dim=1).double().mean())


def per_class_metrics(
    matrix: Sequence[Sequence[int]], classes: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """Return precision, recall, F1 and number of images of each class; None where the divisor is 0.

    Args:
        matrix: counts (classes, classes); rows are the true classes.
        classes: names in the order of the matrix.
    """
    counts = torch.tensor(matrix)
    metrics = {}
    for i, name in enumerate(classes):
        correct, true, predicted = (int(x) for x in (counts[i, i], counts[i].sum(), counts[:, i].sum()))
        metrics[name] = {
            "precision": correct / predicted if predicted else None,
            "recall": correct / true if true else None,
            "f1": 2 * correct / (true + predicted) if true + predicted else None,
            "images": true,
        }
    return metrics
