"""What a finished run left in its folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from finetune.io.paths import PREDICTIONS_FILE


class ValidationPredictions(NamedTuple):
    """What the best epoch said of the validation images."""

    probabilities: np.ndarray
    """(N, classes)"""
    labels: np.ndarray
    """(N,)"""
    keys: list[str]
    """Names of the images."""

    @property
    def right(self) -> np.ndarray:
        """(N,)"""
        return np.equal(self.probabilities.argmax(axis=1), self.labels)


@dataclass
class Run:
    """A folder's files, read."""

    folder: Path
    metrics: dict[str, Any]
    """metrics.json"""
    rows: list[dict[str, Any]]
    """metrics.csv"""
    val_images: list[str]
    """Names, as split.csv has them."""
    config: str
    """config.yaml"""
    answers: ValidationPredictions | None = None
    """None where they were not kept."""
    label: str = ""
    """What a comparison calls it."""
    choices: dict[str, Any] = field(default_factory=dict)
    """What a comparison tells it from others by."""

    @property
    def best(self) -> str:
        """The checkpoint."""
        return str(self.folder / "checkpoints" / "best.ckpt")

    @property
    def acc(self) -> float:
        """Validation accuracy of the best epoch."""
        return float(self.metrics["best"]["val/acc"])

    @property
    def judged(self) -> int:
        """Validation images that were looked at."""
        return sum(map(sum, self.metrics["confusion_matrix"])) or int(self.metrics["n_val"])


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders among the paths and, for a sweep's folder, directly below them.

    Raises:
        FileNotFoundError: a path is no run and holds none.
    """
    found: list[Path] = []
    for path in paths:
        below = sorted(path.glob("*/metrics.json"), key=lambda p: (len(p.parent.name), p.parent.name))
        runs = [path] if (path / "metrics.json").is_file() else [p.parent for p in below]
        if not runs:
            raise FileNotFoundError(f"{path} is not the folder of a finished run: it has no metrics.json.")
        found += runs
    return list(dict.fromkeys(found))


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, and why the others cannot."""
    found, faults = [], []
    for folder in folders:
        try:
            found.append(read_run(folder))
        except ValueError as error:
            faults.append(str(error))
    return found, faults


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        FileNotFoundError: it is none.
        ValueError: a file in it is damaged.
    """
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a finished run: it has no metrics.json.")
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        with (folder / "split.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            val_images = [row["path"] for row in csv.DictReader(file) if row["split"] == "val"]
        metrics["seconds"]["total"], metrics["strategy"], metrics["confusion_matrix"]
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        answers = _read_predictions(folder / "checkpoints" / PREDICTIONS_FILE)
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(f"{folder}: this run cannot be read, a file of it is missing or damaged ({error}).") from error
    if "val/acc" not in metrics["best"]:
        raise ValueError(f"{folder}: its best epoch, by {metrics.get('monitor')}, was not validated.")
    cfg: Any = OmegaConf.create(config)
    older = {"model": cfg.model.name, "data": cfg.data.root, "groups": [], "findings": []}
    metrics = {**older, **metrics}
    rows = [{**row, "epoch": int(row["epoch"])} for row in rows]
    return Run(folder, metrics, rows, val_images, config, answers)


def _read_predictions(path: Path) -> ValidationPredictions | None:
    if not path.is_file():
        return None
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return ValidationPredictions(file["probabilities"], file["labels"], file["keys"].tolist())
