"""Describe everything that a checkpoint says beside its tensors, in one place.

`CheckpointMetadata` is what `finetune` adds to Lightning's own entries, `ModelRecord` is what Lightning keeps as hyper
parameters. No other module spells a key of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

FORMAT = 4
"""Version of what a checkpoint says. 1 had no entry of its own: neither the held-out files nor how the run was
validated. 2 counted epochs from 0 and kept the state of the run beside that entry. 3 kept `weights_source` among the
constructor's arguments."""

TEMPERATURES = (0.05, 20.0)
"""Bounds of a temperature, as of `metrics.calibration`; a test holds them together."""


@dataclass(frozen=True)
class ModelRecord:
    """The arguments from which `FineTuner` is built again; Lightning keeps them as hyper parameters."""

    model: str
    classes: list[str]
    strategy: dict[str, Any] = field(default_factory=dict)
    weights: str = "none"
    """Always "none": the tensors are in the file, and nothing is fetched."""
    head: str | dict[str, Any] | None = None
    """Path of the last layer; with layers of one's own, {"path": ..., "layers": ...}, see `models.head_layers`."""
    feature_boundary: str | None = None
    preprocess: dict[str, Any] | None = None
    optimizer: None = None
    label_smoothing: float = 0.0
    class_weights: list[float] | None = None
    aux_weight: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    transform_input: bool | None = None
    in_channels: int = 3
    model_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the constructor of the network."""

    def to_dict(self) -> dict[str, Any]:
        """Return the hyper parameters as plain values."""
        plain: dict[str, Any] = _plain(self)
        return plain

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """Build the record from stored hyper parameters.

        Raises:
            ValueError: they do not name a model and its classes.
        """
        if not isinstance(stored, Mapping) or not {"model", "classes"} <= stored.keys():
            raise ValueError("it names no model and no classes")
        if not isinstance(stored["model"], str) or not _is_list_of(stored["classes"], str):
            raise ValueError("its model and its classes are not names")
        return cls(**{**_known_fields(cls, stored), "weights": "none"})


@dataclass(frozen=True)
class SplitRecord:
    """The images that a run held out in one split."""

    keys: list[str]
    labels: list[int]
    sizes: list[int] | None = None
    """Bytes of the files; None for images that are not files."""
    content: str | None = None
    """Digest of the pixels of some images that are not files; None for files, and where it is not known."""

    @classmethod
    def from_dict(cls, stored: Any, num_classes: int) -> Self:
        """Build the record; raises ValueError where lengths, types or labels are impossible."""
        _require(isinstance(stored, Mapping))
        record = cls(**_known_fields(cls, stored))
        _require(_is_list_of(record.keys, str) and _is_list_of(record.labels, int))
        _require(len(record.keys) == len(record.labels) and all(0 <= label < num_classes for label in record.labels))
        sizes = record.sizes
        _require(sizes is None or (_is_list_of(sizes, int) and len(sizes) == len(record.keys)))
        _require(isinstance(record.content, str | None))
        return record


@dataclass(frozen=True)
class DataRecord:
    """Where a run had its images, and which of them it held out."""

    root: str | None = None
    dataset: str | None = None
    """Name of the torchvision class, for images that are not files."""
    digest: str | None = None
    """SHA-256 of which image is in which split with which label."""
    splits: dict[str, SplitRecord] = field(default_factory=dict)
    """Every split but train."""
    loader: str | None = None
    """Name of the function of the user's that read the files; None is the usual decoding."""
    content: str | None = None
    """Digest of the pixels of some training images that are not files; None for files, and where it is not known."""
    trained_on: Tensor | None = field(default=None, compare=False)
    """Content hashes of the training images that are files: the first 8 bytes of their SHA-1, int64 (N,)."""
    phashes: Tensor | None = field(default=None, compare=False)
    """Perceptual hashes of those of them that show something, int64 (M,); None where they were not computed."""
    max_pixels: int | None = None
    """How many pixels an image might have; None is the usual limit."""
    flip: bool | None = None
    """Whether a mirrored image is one of the same class, as the user or a solved head has said; None where no one has."""

    @classmethod
    def from_dict(cls, stored: Any, num_classes: int) -> Self:
        """Build the record; raises ValueError where it makes no sense."""
        _require(isinstance(stored, Mapping) and isinstance(stored.get("splits", {}), Mapping))
        record = cls(**_known_fields(cls, stored))
        texts = (record.root, record.dataset, record.digest, record.loader, record.content)
        _require(all(isinstance(value, str | None) for value in texts))
        _require(record.max_pixels is None or (type(record.max_pixels) is int and record.max_pixels > 0))
        _require(record.flip is None or type(record.flip) is bool)
        for hashes in (record.trained_on, record.phashes):
            _require(
                hashes is None or (isinstance(hashes, Tensor) and hashes.dtype == torch.int64 and hashes.ndim == 1)
            )
        splits = {str(name): SplitRecord.from_dict(split, num_classes) for name, split in record.splits.items()}
        return replace(record, splits=splits)


@dataclass(frozen=True)
class ValidationRecord:
    """How and when the weights of a checkpoint were validated, and with what result."""

    epoch: int | None = None
    """Counted from 1."""
    step: int | None = None
    """Optimizer steps before it."""
    precision: str | None = None
    """Lightning's name."""
    device: str | None = None
    processes: int | None = 1
    batch_size: int | None = None
    results: dict[str, Any] = field(default_factory=dict)
    """Metric to value; empty where the weights have changed since."""

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """Build the record; raises ValueError where it makes no sense."""
        _require(isinstance(stored, Mapping))
        record = cls(**_known_fields(cls, stored))
        numbers = (record.epoch, record.step, record.processes, record.batch_size)
        _require(all(isinstance(value, int | None) for value in numbers))
        _require(all(isinstance(value, str | None) for value in (record.precision, record.device)))
        _require(isinstance(record.results, Mapping))
        return record


@dataclass(frozen=True)
class CalibrationRecord:
    """How the model predicted images that it was not fitted on, and the temperature that this gives."""

    temperature: float = 1.0
    """Logits are divided by it before the softmax."""
    images: int = 0
    """Number of those images; 0 where there were none."""
    out_of_fold: bool = False
    """Whether they are training images, each predicted by a head that was fitted without it; else validation images."""
    problem: str = ""
    """Why no temperature was fitted, or why the one that was is no measurement."""
    confidences: Tensor | None = field(default=None, compare=False)
    """Confidence, at the temperature, of each of these predictions or of some of them, float32 (M,)."""
    correct: Tensor | None = field(default=None, compare=False)
    """Which of them are correct, bool (M,)."""

    @property
    def origin(self) -> str:
        """Return which images these are, for people; empty where there are none."""
        images = f"{self.images:,}" if self.images else ""
        if not images:
            return ""
        return f"out-of-fold answers of {images} training images" if self.out_of_fold else f"{images} validation images"

    @property
    def fitted_on(self) -> str:
        """Return on which images the temperature was fitted, for people; empty where it is 1 because none could be."""
        return "" if self.temperature == 1 and self.problem else self.origin

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """Build the record; raises ValueError where it makes no sense."""
        _require(isinstance(stored, Mapping))
        record = cls(**_known_fields(cls, stored))
        low, high = TEMPERATURES
        _require(isinstance(record.temperature, float) and low <= record.temperature <= high)
        _require(type(record.images) is int and record.images >= 0 and type(record.out_of_fold) is bool)
        _require(isinstance(record.problem, str))
        kept = (record.confidences, record.correct)
        if kept != (None, None):
            _require(all(isinstance(value, Tensor) and value.ndim == 1 for value in kept))
            confidences, correct = (torch.as_tensor(value) for value in kept)
            _require(len(confidences) == len(correct) > 0 and correct.dtype == torch.bool)
            _require(confidences.is_floating_point() and bool(((confidences >= 0) & (confidences <= 1)).all()))
        return record


@dataclass(frozen=True)
class RunRecord:
    """The state of a run that Lightning does not keep, for going on with it."""

    max_epochs: int | None = None
    """None is a run without an end."""
    start_epochs: list[int | None] = field(default_factory=list)
    """The epoch, counted from 0, in which each group of the strategy becomes trainable; None is never."""
    processes: int = 1
    rates: dict[str, float] = field(default_factory=dict)
    """Learning rate of each group in the last step."""
    metric_state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """State of the training metrics, summed over all processes."""
    frozen_by_hand: list[str] = field(default_factory=list)
    """Names of the parameters that were frozen whatever the strategy said."""

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """Build the record; raises ValueError where it makes no sense."""
        _require(isinstance(stored, Mapping))
        record = cls(**_known_fields(cls, stored))
        _require(isinstance(record.max_epochs, int | None) and isinstance(record.processes, int))
        _require(all(isinstance(start, int | None) for start in record.start_epochs))
        _require(isinstance(record.rates, Mapping) and isinstance(record.metric_state, Mapping))
        _require(_is_list_of(record.frozen_by_hand, str))
        return record


@dataclass(frozen=True)
class CheckpointMetadata:
    """Everything that `finetune` says in a checkpoint beside Lightning's own entries."""

    format: int = FORMAT
    versions: dict[str, str] = field(default_factory=dict)
    """Package to version."""
    weights_source: str = ""
    """Where the weights came from that the training started with."""
    loss: str = ""
    """Name of the loss that it was trained with; a file cannot hold the loss itself."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the run; empty where there was none."""
    data: DataRecord = field(default_factory=DataRecord)
    validation: ValidationRecord = field(default_factory=ValidationRecord)
    calibration: CalibrationRecord = field(default_factory=CalibrationRecord)
    """Of files without it, and of weights that were not validated: the temperature 1."""
    run: RunRecord | None = None
    """None where only the weights were saved."""

    def without_measurements(self) -> Self:
        """Return it without what was measured of weights, for others."""
        return replace(self, validation=ValidationRecord(), calibration=CalibrationRecord())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors; nothing is copied."""
        plain: dict[str, Any] = _plain(self)
        return plain

    @classmethod
    def from_dict(cls, stored: Any, num_classes: int) -> Self:
        """Build the metadata of a file that may say anything.

        Raises:
            ValueError: a part makes no sense; names it.
        """
        readers: dict[str, Any] = {
            "data": lambda part: DataRecord.from_dict(part, num_classes),
            "validation": ValidationRecord.from_dict,
            "calibration": CalibrationRecord.from_dict,
            "run": lambda part: None if part is None else RunRecord.from_dict(part),
        }
        parts: dict[str, Any] = {}
        for name, read in readers.items():
            try:
                parts[name] = read(stored.get(name) if name == "run" else stored.get(name) or {})
            except (TypeError, ValueError) as error:
                raise ValueError(f"what it says under finetune.{name} makes no sense") from error
        texts: dict[str, Any] = {
            key: dict(stored[key]) for key in ("versions", "config") if isinstance(stored.get(key), Mapping)
        }
        names: dict[str, Any] = {
            key: value for key in ("weights_source", "loss") if isinstance(value := stored.get(key), str)
        }
        return cls(**texts, **parts, **names)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _known_fields(cls: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored values of a dataclass's fields; a newer version may have written others."""
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in stored.items() if key in names}


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("it makes no sense")
