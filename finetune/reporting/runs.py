"""Read the files that a finished run left in its folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.io.paths import PREDICTIONS_FILE


class ValidationPredictions(NamedTuple):
    """Hold the predictions of the best epoch for the validation images."""

    probabilities: np.ndarray
    """(N, classes)"""
    labels: np.ndarray
    """(N,)"""
    keys: list[str]
    """Names of the images."""

    @property
    def correct(self) -> np.ndarray:
        """Return whether each image was predicted correctly, (N,) bool."""
        return np.equal(self.probabilities.argmax(axis=1), self.labels)


@dataclass
class Run:
    """Hold the contents of a run's folder."""

    folder: Path
    metrics: dict[str, Any]
    """metrics.json"""
    rows: list[dict[str, Any]]
    """metrics.csv"""
    val_images: list[str]
    """Names, as in split.csv; of a cross-validation those of the training images."""
    config: str
    """config.yaml"""
    predictions: ValidationPredictions | None = None
    """None where they were not kept."""
    label: str = ""
    """The name that a comparison gives to the run."""
    choices: dict[str, Any] = field(default_factory=dict)
    """Key -> value of the configuration, by which a comparison distinguishes runs."""

    @property
    def best_checkpoint(self) -> str:
        """Return the path of the checkpoint of the best epoch."""
        return str(self.folder / "checkpoints" / "best.ckpt")

    @property
    def is_out_of_fold(self) -> bool:
        """Return whether its accuracy is that of a cross-validation of its training images, see `OutOfFoldValidation`."""
        return bool(self.metrics.get("eval") == "kfold")

    @property
    def acc(self) -> float:
        """Return the validation accuracy of the best epoch."""
        return float(self.metrics["best"]["val/acc"])

    @property
    def training_seconds(self) -> float:
        """Return the seconds of training, as they would be with an empty cache of features.

        With those of the epochs before the run was resumed, and what computing features took that were found.
        """
        seconds, features = self.metrics["seconds"], self.metrics.get("features") or {}
        fit = seconds.get("fit", seconds["total"]) + seconds.get("before", 0.0)
        return float(fit + features.get("saved_seconds", 0.0))

    @property
    def cache(self) -> str:
        """Return "warm" where some features were there before the run, "filled" where it kept them, else ""."""
        features = self.metrics.get("features")
        return "" if features is None else "warm" if features["from_cache"] else "filled"

    @property
    def n_evaluated(self) -> int:
        """Return the number of validation images that were evaluated."""
        return sum(map(sum, self.metrics["confusion_matrix"])) or int(self.metrics["n_val"])

    @property
    def n_correct(self) -> int:
        """Return the number of validation images that the best epoch predicted correctly."""
        return round(self.acc * self.n_evaluated)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among the paths and, for a sweep's folder, directly below them.

    Raises:
        FileNotFoundError: some paths are no run and hold none; it names all of them.
    """
    folders: list[Path] = []
    missing: list[str] = []
    for path in paths:
        below = sorted(path.glob("*/metrics.json"), key=lambda p: (len(p.parent.name), p.parent.name))
        runs = [path] if (path / "metrics.json").is_file() else [p.parent for p in below]
        if not runs:
            missing.append(f"{path} is not the folder of a finished run: it has no metrics.json.")
        folders += runs
    if missing:
        raise FileNotFoundError("\n".join(dict.fromkeys(missing)))
    return list(dict.fromkeys(folders))


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read several runs; return those that can be read, and why the others cannot."""
    runs, errors = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            errors.append(str(error))
    return runs, errors


def read_run(folder: Path, validated: bool = True) -> Run:
    """Read a run's folder.

    Args:
        folder: of a finished run.
        validated: whether its best epoch must have been validated.

    Raises:
        FileNotFoundError: it is not a run's folder.
        ValueError: a file in it is missing, damaged, or of a version that wrote other keys; or it was not validated.
    """
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a finished run: it has no metrics.json.")
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        rows = [{**row, "epoch": int(row["epoch"])} for row in rows]
        evaluated = "train" if metrics.get("eval") == "kfold" else "val"
        with (folder / "split.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            val_images = [row["path"] for row in csv.DictReader(file) if row["split"] == evaluated]
        # without per_class_recall it is of an earlier version, whose epochs counted from 0
        metrics["seconds"]["total"], metrics["strategy"], metrics["confusion_matrix"], metrics["per_class_recall"]
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        predictions = _read_predictions(folder / "checkpoints" / PREDICTIONS_FILE)
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(f"{folder}: this run cannot be read, a file of it is missing or damaged ({error}).") from error
    if validated and "val/acc" not in metrics["best"]:
        raise ValueError(f"{folder}: its best epoch, by {metrics.get('monitor')}, was not validated.")
    return Run(folder, metrics, rows, val_images, config, predictions)


def _read_predictions(path: Path) -> ValidationPredictions | None:
    if not path.is_file():
        return None
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return ValidationPredictions(file["probabilities"], file["labels"], file["keys"].tolist())
