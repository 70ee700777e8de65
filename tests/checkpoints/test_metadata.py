"""Test `finetune.checkpoints.metadata`."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
import torch

from finetune.checkpoints import metadata as metadata_file
from finetune.checkpoints.metadata import (
    CalibrationRecord,
    CheckpointMetadata,
    DataRecord,
    ModelRecord,
    RunRecord,
    SplitRecord,
    ValidationRecord,
)
from finetune.metrics import calibration


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


def test_calibration_comes_back_and_is_one_in_older_files() -> None:
    record = CalibrationRecord(1.4, 244, True, "", torch.tensor([0.5, 0.75]), torch.tensor([False, True]))
    found = CheckpointMetadata.from_dict(_stored(CheckpointMetadata(calibration=record)), 2).calibration
    assert (found, found.origin) == (record, "out-of-fold answers of 244 training images")
    assert found.confidences is not None
    assert found.confidences.tolist() == [0.5, 0.75]
    assert found.correct is not None
    assert found.correct.tolist() == [False, True]
    older = CheckpointMetadata.from_dict({"data": {"root": "/a"}, "validation": {"epoch": 3}}, 2).calibration
    assert (older.temperature, older.images, older.origin, older.confidences) == (1.0, 0, "", None)
    assert CalibrationRecord(images=1234).origin == "1,234 validation images"


def test_bounds_of_a_temperature_are_those_within_which_it_is_fitted() -> None:
    assert metadata_file.TEMPERATURES == calibration.TEMPERATURES


def test_what_was_measured_is_left_out_for_other_weights() -> None:
    metadata = CheckpointMetadata(
        loss="focal", validation=ValidationRecord(epoch=3), calibration=CalibrationRecord(2.0, 40)
    )
    assert metadata.without_measurements() == CheckpointMetadata(loss="focal")


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
        ("calibration", {"temperature": float("nan")}),
        ("calibration", {"temperature": -1.0}),
        ("calibration", {"temperature": 1e30}),
        ("calibration", {"temperature": "1.5"}),
        ("calibration", {"images": -1}),
        ("calibration", {"images": True}),
        ("calibration", {"out_of_fold": 1}),
        ("calibration", {"problem": None}),
        ("calibration", {"confidences": torch.tensor([0.5])}),  # correct or not?
        ("calibration", {"confidences": torch.tensor([0.5]), "correct": torch.tensor([True, False])}),
        ("calibration", {"confidences": torch.tensor([1.5]), "correct": torch.tensor([True])}),
        ("calibration", {"confidences": torch.tensor([float("nan")]), "correct": torch.tensor([True])}),
        ("calibration", {"confidences": torch.tensor([0.5]), "correct": torch.tensor([1])}),
        ("calibration", {"confidences": [0.5], "correct": [True]}),
        ("calibration", 2.0),
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
