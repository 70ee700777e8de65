"""Test `finetune.training.arguments`."""

from __future__ import annotations

import pytest

from finetune import FineTuner


@pytest.mark.parametrize(
    ("classes", "message"), [([], "at least two classes"), (["a"], "at least two"), (["a", "a"], "must differ")]
)
def test_finetuner_bad_classes(classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuner("resnet18", classes, weights="none")


def test_finetuner_number_of_classes_names_them() -> None:
    assert FineTuner("squeezenet1_1", 3, weights="none").classes == ["0", "1", "2"]
