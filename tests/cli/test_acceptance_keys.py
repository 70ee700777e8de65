"""Test `finetune.cli.acceptance_keys`."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from finetune.cli.acceptance_keys import find_acceptance_faults


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"target_precision": None, "min_confidence": 0.8, "temperature": 1}, []),
        ({"target_precision": 0.9, "min_confidence": None, "temperature": "checkpoint"}, []),
        ({"target_precision": 0.9, "min_confidence": 0.8, "temperature": "checkpoint"}, ["both say"]),
        (
            {"target_precision": 0.9, "min_confidence": 0.8, "temperature": 1},
            ["both say", "temperature=1 makes others"],
        ),
    ],
)
def test_a_target_leaves_no_room_for_another_threshold(keys: dict[str, object], words: list[str]) -> None:
    found = list(find_acceptance_faults(OmegaConf.create(keys)))
    assert len(found) == len(words)
    assert all(word in fault for word, fault in zip(words, found, strict=True))
