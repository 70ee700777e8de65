"""Test `finetune.training.validation_log`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from finetune.training.validation_log import ValidationLog

PROBABILITIES = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]] * 3)  # the first of equals is predicted
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 0, 1, 1])
CORRECT = [True, True, False, False, False, True, True, False, True]


def test_each_image_of_each_validation_is_a_bit(tmp_path: Path) -> None:
    log = ValidationLog()
    log.add(1, 5, PROBABILITIES, LABELS)
    log.add(2, 10, PROBABILITIES, 1 - LABELS)
    log.add(2, 10, PROBABILITIES.bfloat16(), LABELS)  # other weights at the same step are a candidate too
    wrong, found = [not ok for ok in CORRECT], log.correct([1, 2])
    assert found is not None
    assert found.tolist() == [CORRECT, wrong, CORRECT]
    log.write(tmp_path / "epochs.npz")
    with np.load(tmp_path / "epochs.npz", allow_pickle=False) as file:
        assert (file["epochs"].tolist(), file["steps"].tolist(), int(file["images"])) == ([1, 2, 2], [5, 10, 10], 9)
        assert file["correct"].shape == (3, 2)
        assert np.unpackbits(file["correct"], axis=1, count=9).tolist() == [CORRECT, wrong, CORRECT]


def test_a_run_goes_on_with_the_entries_of_its_checkpoint(tmp_path: Path) -> None:
    log = ValidationLog()
    log.add(1, 5, PROBABILITIES, LABELS)
    torch.save(log.entries, tmp_path / "state")
    again = ValidationLog(torch.load(tmp_path / "state", weights_only=True))
    again.add(2, 10, PROBABILITIES, LABELS)
    found = again.correct([1, 2])
    assert found is not None
    assert found.tolist() == [CORRECT, CORRECT]
    assert len(log.entries) == 1


def test_nothing_is_known_where_an_epoch_is_missing_or_has_other_images(tmp_path: Path) -> None:
    log = ValidationLog()
    log.add(2, 10, PROBABILITIES, LABELS)
    assert log.correct([1, 2]) is None
    assert log.correct([2]) is not None
    log.add(3, 15, PROBABILITIES[:4], LABELS[:4])
    assert log.correct([2, 3]) is None
    log.write(tmp_path / "epochs.npz")
    assert not (tmp_path / "epochs.npz").exists()
