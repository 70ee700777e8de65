"""Test `finetune.checkpoints.metadata`."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch

from finetune.checkpoints.metadata import (
    CheckpointMetadata,
    DataRecord,
    ModelRecord,
    RunRecord,
    SplitRecord,
    ValidationRecord,
)


def _stored(metadata: CheckpointMetadata) -> Any:
    """What a checkpoint gives back that is read without running code."""
    file = BytesIO()
    torch.save(metadata.to_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_metadata_come_back_from_a_file_as_they_were() -> None:
    metadata = CheckpointMetadata(
        versions={"torch": "2.11"},
        config={"seed": 3, "data": {"root": "photos"}},
        data=DataRecord("/photos", None, "abc", {"val": SplitRecord(["val/a.png"], [1], [70])}),
        validation=ValidationRecord(2, 6, "32-true", "cpu", 1, 8, {"acc": 0.5}),
        run=RunRecord(9, [0, None], 2, {"lr/head": 0.1}, {"acc": {"tp": torch.tensor([3])}}),
    )
    found = CheckpointMetadata.from_dict(_stored(metadata), num_classes=2)
    assert found.run is not None
    assert metadata.run is not None
    assert torch.equal(found.run.metric_state["acc"]["tp"], metadata.run.metric_state["acc"]["tp"])
    for name in ("versions", "config", "data", "validation"):
        assert getattr(found, name) == getattr(metadata, name)
    assert (found.run.max_epochs, found.run.start_epochs, found.run.rates) == (9, [0, None], {"lr/head": 0.1})
    weights_only = CheckpointMetadata()
    assert CheckpointMetadata.from_dict(_stored(weights_only), 2) == weights_only


def test_hashes_of_the_training_images_come_back_and_are_missing_in_older_files() -> None:
    hashes = torch.tensor([5, -7], dtype=torch.int64)
    stored = _stored(CheckpointMetadata(data=DataRecord(trained_on=hashes, phashes=hashes + 1, content="ab")))
    found = CheckpointMetadata.from_dict(stored, 2).data
    assert found.trained_on is not None
    assert torch.equal(found.trained_on, hashes)
    assert found.phashes is not None
    assert torch.equal(found.phashes, hashes + 1)
    assert found.content == "ab"
    older = CheckpointMetadata.from_dict({"data": {"root": "/a", "splits": {}}}, 2).data
    assert (older.trained_on, older.phashes, older.content) == (None, None, None)


def test_fields_of_a_later_version_are_passed_over() -> None:
    stored = {"validation": {"epoch": 3, "weather": "fine"}, "data": {"root": "/a", "owner": "me"}, "mood": "good"}
    found = CheckpointMetadata.from_dict(stored, 2)
    assert (found.validation.epoch, found.data.root) == (3, "/a")


@pytest.mark.parametrize(
    ("part", "stored"),
    [
        ("data", {"splits": {"val": {"keys": ["a"], "labels": [2]}}}),  # of two classes
        ("data", {"splits": {"val": {"keys": ["a"], "labels": [1], "content": 3}}}),
        ("data", {"content": 3}),
        ("data", {"trained_on": [1, 2]}),
        ("data", {"trained_on": torch.tensor([1.0])}),
        ("data", {"trained_on": torch.tensor([[1]])}),
        ("data", {"phashes": torch.tensor([1.0])}),
        ("data", {"splits": {"val": {"keys": ["a"], "labels": [-1]}}}),
        ("data", {"splits": {"val": {"keys": ["a"], "labels": [True]}}}),
        ("data", {"splits": {"val": {"keys": ["a", "b"], "labels": [0]}}}),
        ("data", {"splits": {"val": {"keys": ["a"], "labels": [0], "sizes": [1, 2]}}}),
        ("data", {"splits": ["val"]}),
        ("validation", {"batch_size": "8"}),
        ("validation", "yesterday"),
        ("run", {"start_epochs": ["0"]}),
        ("run", {"processes": None}),
    ],
)
def test_what_makes_no_sense_is_named_by_its_part(part: str, stored: Any) -> None:
    with pytest.raises(ValueError, match=f"what it says under finetune.{part} makes no sense"):
        CheckpointMetadata.from_dict({part: stored}, num_classes=2)


def test_a_model_is_built_again_without_fetching_anything() -> None:
    stored = {**ModelRecord("resnet18", ["a", "b"]).to_dict(), "weights": "default", "colour": "red"}
    assert ModelRecord.from_dict(stored) == ModelRecord("resnet18", ["a", "b"])
    with pytest.raises(ValueError, match="it names no model and no classes"):
        ModelRecord.from_dict({"model": "resnet18"})
    with pytest.raises(ValueError, match="its model and its classes are not names"):
        ModelRecord.from_dict({"model": "resnet18", "classes": ["a", 1]})
