"""Test `finetune.exporting.verify`."""

from __future__ import annotations

import pytest
import torch

from finetune.exporting import verify


def test_compare_counts_and_measures() -> None:
    expected = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    found = verify.compare_probabilities(expected, torch.tensor([[0.8, 0.2], [0.6, 0.4]]), torch.tensor([0, 1]))
    assert found == {"images": 2, "max_abs_diff": pytest.approx(0.2), "agreement": 0.5, "acc": 0.5, "model_acc": 1.0}
