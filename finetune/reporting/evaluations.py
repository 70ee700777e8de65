"""Compare evaluations of several models on the same images: how many are correct, and which images changed."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.metrics.statistics import wilson_interval
from finetune.reporting.comparison import PairedTest, compare_with_first

KINDS = {"lost": "right->wrong", "gained": "wrong->right", "other": "wrong->other"}
"""What happens to an image between two models, and how tables say it; "other" is another wrong label."""

WORDS = {"lost": "became wrong", "gained": "became right", "other": "wrong in another way"}


class PredictedImage(NamedTuple):
    """A row of `predictions.csv`."""

    true: str
    label: str
    confidence: float

    @property
    def correct(self) -> bool:
        """Return whether the label is the true one."""
        return self.label == self.true


class Change(NamedTuple):
    """An image that two models label differently."""

    path: str
    kind: str
    """A key of `KINDS`."""
    before: PredictedImage
    after: PredictedImage


@dataclass
class Evaluation:
    """Hold the contents of an evaluation's folder."""

    folder: Path
    values: dict[str, Any]
    """evaluation.json"""
    images: dict[str, PredictedImage]
    """predictions.csv, by path."""
    label: str = ""
    """The name that a comparison gives to it."""
    changes: list[Change] = field(default_factory=list)
    """Against the first evaluation of a comparison."""
    test: PairedTest | None = None
    """Against the first; None for the first."""

    @property
    def n_correct(self) -> int:
        """Return the number of images that are predicted correctly."""
        return sum(image.correct for image in self.images.values())

    @property
    def acc(self) -> float:
        """Return the accuracy."""
        return self.n_correct / len(self.images)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy."""
        return wilson_interval(self.n_correct, len(self.images))

    @property
    def checkpoint(self) -> Path:
        """Return the path of the checkpoint, or of its run, as it was given."""
        return Path(str(self.values.get("ckpt", "")))

    @property
    def run_name(self) -> str:
        """Return the name of the run's folder, or of a file that lies in none."""
        path = self.checkpoint
        return path.parent.parent.name if path.parent.name == "checkpoints" else path.name

    def count(self, kind: str) -> int:
        """Return the number of changed images of a kind of `KINDS`."""
        return sum(change.kind == kind for change in self.changes)

    @property
    def description(self) -> str:
        """Return how it compares with the first evaluation, in a sentence."""
        if self.test is None:
            return "-"
        if not self.changes:
            return "the same label for every image"
        difference = self.test.only_this - self.test.only_best
        amount = (
            f"{abs(difference)} {'more' if difference > 0 else 'fewer'} correct" if difference else "as many correct"
        )
        counts = ", ".join(f"{self.count(kind)} {WORDS[kind]}" for kind in KINDS if self.count(kind))
        p = f"p = {self.test.p:.2g}" if self.test.p >= 1e-4 else "p < 0.0001"
        return f"{amount} ({counts}); {'significant' if self.test.significant else 'not significant'} ({p})"

    def file(self, path: str) -> Path | None:
        """Return the file of an image; None where the evaluation does not say where its images lie."""
        root = self.values.get("root")
        return None if root is None else Path(root) / path


def find_evaluations(paths: Sequence[Path]) -> list[Path]:
    """Return the folders of evaluations among the paths and, for a sweep's folder, directly below them; none within runs."""
    folders: list[Path] = []
    for path in paths:
        if (path / "metrics.json").is_file():
            continue
        below = sorted(path.glob("*/evaluation.json"), key=lambda p: (len(p.parent.name), p.parent.name))
        is_one = (path / "evaluation.json").is_file()
        folders += [path] if is_one else [p.parent for p in below]
    return list(dict.fromkeys(folders))


def require_evaluations_only(paths: Sequence[Path], evaluations: Sequence[Path]) -> None:
    """Refuse evaluations beside runs, whose numbers are of different images, and one evaluation alone.

    Raises:
        ValueError: says what to do.
    """
    for path in paths:
        if not find_evaluations([path]):
            what = f"{path} is none: python -m finetune.evaluate ckpt={path} makes one of a run"
            if not path.exists():
                what = f"there is no {path}"
            raise ValueError(f"{evaluations[0]} is an evaluation and is compared with evaluations; {what}.")
    if len(evaluations) == 1:
        raise ValueError(
            f"{evaluations[0]} is one evaluation: give two or more, of different models on the same images."
        )


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation's folder.

    Raises:
        ValueError: a file in it is missing or damaged.
    """
    try:
        values = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        with (folder / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            images = {
                row["path"]: PredictedImage(row["true"], row["label"], float(row["confidence"]))
                for row in csv.DictReader(file)
            }
        if len(images) != values["images"]:
            raise ValueError(f"predictions.csv has {len(images)} images and evaluation.json {values['images']}")
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(
            f"{folder}: this evaluation cannot be read, a file of it is missing or damaged ({error})."
        ) from error
    return Evaluation(folder, values, images)


def compare_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """Give each evaluation its label, and its changes and test against the first.

    Raises:
        ValueError: they are of different images; names some.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        _require_same_images(first, other)
    _label(evaluations)
    correct = [np.array([e.images[path].correct for path in first.images]) for e in evaluations]
    for other, test in zip(evaluations, compare_with_first(correct), strict=True):
        other.test = test
        pairs = ((path, before, other.images[path]) for path, before in first.images.items())
        changes = [Change(path, _kind(a, b), a, b) for path, a, b in pairs if a.label != b.label]
        other.changes = sorted(changes, key=lambda change: (list(KINDS).index(change.kind), -change.after.confidence))


def _kind(before: PredictedImage, after: PredictedImage) -> str:
    return "lost" if before.correct else "gained" if after.correct else "other"


def _require_same_images(a: Evaluation, b: Evaluation) -> None:
    advice = "evaluate both on the same images (data.root=FOLDER, the same split=)"
    only = [[path for path in x.images if path not in y.images] for x, y in ((a, b), (b, a))]
    if any(only):
        parts = [
            f"{len(paths)} of {len(x.images)} are in {x.folder} alone ({', '.join(paths[:2])})"
            for paths, x in zip(only, (a, b), strict=True)
            if paths
        ]
        raise ValueError(f"{a.folder} and {b.folder} are of different images: {'; '.join(parts)}. Please {advice}.")
    for path, image in a.images.items():
        if image.true != b.images[path].true:
            labels = f"{image.true} in {a.folder} and {b.images[path].true} in {b.folder}"
            raise ValueError(f"The true label of {path} is {labels}: {advice}.")
    known = [e.values.get("content") for e in (a, b)]
    if None not in known and known[0] != known[1]:
        raise ValueError(f"{a.folder} and {b.folder} are of different files of the same names: {advice}.")


def _label(evaluations: Sequence[Evaluation]) -> None:
    """Name each by its model, and by as much more as distinguishes them."""
    parts = [
        [str(e.values.get("model") or e.run_name), e.run_name, f"tta={e.values.get('tta')}", str(e.values.get("precision")), e.folder.name]
        for e in evaluations
    ]  # fmt: skip
    chosen = [0]
    for i in range(1, len(parts[0])):
        before, after = (len({tuple(p[k] for k in keys) for p in parts}) for keys in (chosen, [*chosen, i]))
        if after > before:
            chosen.append(i)
    for e, own in zip(evaluations, parts, strict=True):
        e.label = " ".join(dict.fromkeys(own[i] for i in chosen))
    for e in evaluations:
        if sum(other.label == e.label for other in evaluations) > 1:
            e.label = str(e.folder)
