"""Test `finetune.metrics.classification`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetune import FineTuner
from finetune.metrics import classification
from finetune.metrics.classification import ClassificationMetrics, TrainingMetrics, monitor_mode
from tests.helpers import make_finetuner


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/loss", "min"), ("train/loss", "min"), ("val/acc", "max"), ("val/f1", "max"), ("val/auroc", "max")],
)
def test_less_is_better_of_losses_alone(monitor: str, mode: str) -> None:
    assert monitor_mode(monitor) == mode


def test_metrics_of_a_few_images_are_those_counted_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.5]])  # predicted: 0 1 1 0 1
    labels = torch.tensor([0, 0, 1, 1, 1])
    metrics = ClassificationMetrics(2)
    for batch in (slice(0, 2), slice(2, 5)):
        metrics.update(logits[batch], labels[batch])
    values = metrics.compute()
    assert values["confusion_matrix"].tolist() == [[1, 1], [1, 2]]
    assert values["acc"].item() == pytest.approx(3 / 5)
    assert values["per_class_recall"].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert values["f1"].item() == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert values["loss"].item() == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    # of the 2 x 3 pairs of an image of class 1 and one of class 0, the margin for class 1 is larger in 4
    assert values["auroc"].item() == pytest.approx(4 / 6)
    probabilities, kept = metrics.predictions()
    assert torch.equal(kept, labels)
    assert torch.allclose(probabilities, logits.softmax(dim=1))
    metrics.reset()
    metrics.update(logits[:1], labels[:1])
    assert metrics.compute()["acc"].item() == 1


def test_an_epoch_that_was_stopped_counts_on() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(10, 3, generator=generator), torch.randint(3, (10,), generator=generator)
    whole, first, rest = (TrainingMetrics(3) for _ in range(3))
    losses = torch.rand(5, generator=generator)
    for i in range(5):
        batch = slice(2 * i, 2 * i + 2)
        for metrics in (whole, first if i < 3 else rest):
            metrics.update(losses[i], logits[batch], labels[batch], 2)
        if i == 2:
            rest.restore_metric_state(first.metric_state())
    assert {k: v.item() for k, v in rest.compute().items()} == pytest.approx(
        {k: v.item() for k, v in whole.compute().items()}
    )
    assert whole.compute()["loss"].item() == pytest.approx(losses.mean().item())


def test_top_k_counts_the_label_among_the_best() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([1, 0, 1])
    assert [round(classification.top_k_accuracy(logits, labels, k), 4) for k in (1, 2, 3)] == [0.0, 0.6667, 1.0]


def test_per_class_precision_recall_and_what_is_not_defined() -> None:
    found = classification.per_class_metrics([[3, 1, 0], [2, 4, 0], [0, 0, 0]], ["a", "b", "c"])
    assert found["a"] == {"precision": 0.6, "recall": 0.75, "f1": pytest.approx(2 / 3), "images": 4}
    assert found["c"] == {"precision": None, "recall": None, "f1": None, "images": 0}


def _evaluate(
    module: FineTuner, trainer: Callable[..., Trainer], images: Tensor, labels: Tensor, batch: int
) -> dict[str, Any]:
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch)
    logged = trainer(1).validate(module, loader, verbose=False)[0]
    return {**module.results["val"], "logged": logged}


@pytest.mark.parametrize("batch", [7, 3, 2, 1])
def test_metrics_are_of_all_images_whatever_the_batches(batch: int, trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner("resnet18").eval()
    images, labels = torch.randn(7, 3, 32, 32), torch.tensor([0, 0, 0, 1, 1, 2, 0])
    found = _evaluate(module, trainer, images, labels, batch)
    with torch.no_grad():
        logits = module(images)
    predicted = logits.argmax(1)
    matrix = torch.zeros(3, 3, dtype=torch.long)
    for truth, guess in zip(labels, predicted, strict=True):
        matrix[truth, guess] += 1
    assert found["confusion_matrix"] == matrix.tolist()
    assert found["acc"] == pytest.approx((predicted == labels).float().mean().item())
    assert found["per_class_recall"] == pytest.approx([(matrix[i, i] / matrix[i].sum()).item() for i in range(3)])
    f1 = [2 * matrix[i, i] / (matrix[i].sum() + matrix[:, i].sum()) for i in range(3)]
    assert found["f1"] == pytest.approx(sum(f1).item() / 3)  # type: ignore[union-attr]
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    aucs = []
    for i in range(3):
        p, own = logits.softmax(1)[:, i], labels == i
        aucs.append((p[own][:, None] > p[~own][None]).float().mean().item())
    assert found["auroc"] == pytest.approx(sum(aucs) / 3)
    assert {"val/acc", "val/loss", "val/f1", "val/auroc"} == set(found["logged"])


def test_auroc_is_left_out_where_it_is_not_defined(trainer: Callable[..., Trainer]) -> None:
    module = make_finetuner("resnet18")
    found = _evaluate(module, trainer, torch.randn(3, 3, 32, 32), torch.tensor([1, 1, 1]), 2)
    assert "auroc" not in found
    found = _evaluate(module, trainer, torch.randn(3, 3, 32, 32), torch.tensor([1, 1, 2]), 2)
    assert 0 <= found["auroc"] <= 1
