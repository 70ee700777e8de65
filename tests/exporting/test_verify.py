"""Test `finetune.exporting.verify`."""

from __future__ import annotations

import pytest
import torch

from finetune.exporting import verify


def test_compare_counts_and_measures() -> None:
    expected = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    found = verify.compare_probabilities(expected, torch.tensor([[0.8, 0.2], [0.6, 0.4]]), torch.tensor([0, 1]))
    assert found == {"images": 2, "max_abs_diff": pytest.approx(0.2), "agreement": 0.5, "acc": 0.5, "model_acc": 1.0}


def test_images_to_compare_on_are_spread_over_all() -> None:
    assert verify.spread("abcdefghij", 4) == ["a", "c", "f", "h"]
    assert verify.spread("abc", 64) == ["a", "b", "c"]
    assert sorted(len(set(verify.spread(range(153), n))) for n in (100, 152)) == [100, 152]
    assert verify.spread(range(153), 100)[-1] > 150  # not the first hundred, of which most are of one class
