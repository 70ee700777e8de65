"""Test `finetune.training.losses`."""

from __future__ import annotations

import pytest
import torch

from finetune.training.losses import make_criterion, mean_loss


def test_the_loss_is_the_weighted_mean_of_the_log_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    labels = torch.tensor([0, 1, 1])
    of_label = -logits.log_softmax(dim=1)[range(3), labels]
    weights = torch.tensor([1.0, 2.0, 5.0])
    expected = (weights[labels] * of_label).sum() / weights[labels].sum()
    criterion = make_criterion(None, weights.tolist(), 0.0, 3)
    torch.testing.assert_close(criterion(logits, labels), expected)
    assert criterion.state_dict() == {}  # checkpoints hold the network and nothing else
    smoothed = 0.7 * of_label + 0.3 * -logits.log_softmax(dim=1).mean(dim=1)  # a share of the label goes to all classes
    torch.testing.assert_close(make_criterion(None, None, 0.3, 3)(logits, labels), smoothed.mean())


def test_there_are_as_many_weights_as_classes() -> None:
    with pytest.raises(ValueError, match="class_weights has 2 values for 3 classes"):
        make_criterion(None, [1.0, 2.0], 0.0, 3)


def test_a_full_memory_is_not_blamed_on_the_loss() -> None:
    def full(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        mean_loss(full, torch.zeros(2, 3), torch.tensor([0, 1]))
