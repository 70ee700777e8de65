"""Classifying many pictures in flat memory: a row for each, and what is kept beside the rows."""

from __future__ import annotations

import filecmp
import heapq
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.inference import inputs, prediction_table
from finetune.inference.classifier import Classifier
from finetune.inference.inputs import Inputs, LoadedImage
from finetune.reporting import figures
from finetune.runtime.console import field_line, progress_bar

BATCH = 32

SHOWN = 8
"""Pictures in each half of the gallery, and answers on the terminal where there are no more."""


@dataclass
class PredictionSummary:
    """What came of it."""

    answered: Counter[str] = field(default_factory=Counter)
    """How many pictures got each label."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """The first that could not be read, and why."""
    failures: int = 0
    first: list[prediction_table.Row] = field(default_factory=list)
    """The first rows with an answer."""
    gallery: Gallery = field(default_factory=lambda: Gallery())

    @property
    def total(self) -> int:
        """Pictures that were looked at."""
        return self.answered.total() + self.failures


class Gallery:
    """The most and the least certain pictures so far."""

    def __init__(self) -> None:
        self._most: list[Any] = []
        self._least: list[Any] = []
        self._number = count()  # settles ties, so that pictures are never compared

    def add(self, confidence: float, caption: str, image: Tensor) -> None:
        """Look at a picture, uint8 (3, H, W)."""
        number = next(self._number)
        for heap, rank in ((self._most, confidence), (self._least, -confidence)):
            if len(heap) < SHOWN or rank > heap[0][0]:
                (heapq.heappush if len(heap) < SHOWN else heapq.heapreplace)(
                    heap, (rank, -number, caption, image.clone())
                )

    def draw(self, path: Path) -> None:
        """As a PNG file; nothing without a picture."""
        rows = {
            title: [
                (image, caption) for _, _, caption, image in sorted(heap, reverse=True, key=lambda entry: entry[:2])
            ]
            for title, heap in (("most certain", self._most), ("least certain", self._least))
        }
        if self._most:
            figures.save_gallery(rows, path)


def predict(
    model: Classifier,
    source: Inputs,
    table: Path,
    *,
    k: int = 5,
    temperature: float = 1.0,
    embeddings: Path | None = None,
    copy_to: Path | None = None,
) -> PredictionSummary:
    """Classify every picture of a source; a row each, in order, in `table`.

    Args:
        table: .csv, .jsonl or .parquet.
        k: how many classes a row names.
        temperature: logits are divided by it.
        embeddings: a .npy file for what enters the head, a row (D,) for each of the table, NaN where there is none.
        copy_to: copies of the pictures go below it, into a folder per label.
    """
    outcome, k = PredictionSummary(), min(k, len(model.classes))
    if copy_to is not None and source.folder is not None and copy_to.resolve().is_relative_to(source.folder.resolve()):
        raise ValueError(
            f"copy_to={copy_to} lies in the source, {source.folder}: the next run would read the copies too."
        )
    with ExitStack() as stack:
        append = stack.enter_context(prediction_table.open_table(table, prediction_table.column_names(k)))
        keep = stack.enter_context(_embedding_writer(embeddings)) if embeddings else None
        loaded = progress_bar(inputs.read_inputs(source.names, model.transform, 2 * BATCH), "pictures", source.total)
        while batch := list(islice(loaded, BATCH)):
            probabilities, features = _run(model, batch, temperature, embed=keep is not None)
            rows = [
                prediction_table.failure_row(item.name, item.error)
                if p is None
                else prediction_table.prediction_row(item.name, p, model.classes, k)
                for item, p in zip(batch, probabilities, strict=True)
            ]
            append(rows)
            if keep is not None:
                keep(features)
            for item, row in zip(batch, rows, strict=True):
                _note(outcome, item, row)
                if copy_to is not None and row["status"] == "ok" and not inputs.is_address(item.name):
                    copy_into(Path(item.name), copy_to / folder_name(row["label"]))
    return outcome


def _run(
    model: Classifier, batch: Sequence[LoadedImage], temperature: float, embed: bool
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Probabilities and features of each picture, None for those that could not be read."""
    images = [item.image for item in batch if item.image is not None]
    nothing: list[Tensor | None] = [None] * len(batch)
    if not images:
        return nothing, nothing
    stacked = torch.stack(images)
    logits, features = model.logits_and_features(stacked) if embed else (model.logits(stacked), None)
    found, entered = (
        iter((logits.double() / temperature).softmax(dim=1)),
        iter(features if features is not None else ()),
    )
    good = [item.image is not None for item in batch]
    return [next(found) if g else None for g in good], [next(entered) if g and embed else None for g in good]


def _note(outcome: PredictionSummary, item: LoadedImage, row: prediction_table.Row) -> None:
    if item.image is None:
        outcome.failures += 1
        if len(outcome.failed) < 5:
            outcome.failed.append((item.name, item.error))
        return
    outcome.answered[row["label"]] += 1
    if len(outcome.first) < SHOWN:
        outcome.first.append(row)
    image = item.image if item.image.ndim == 3 else item.image[0]
    outcome.gallery.add(row["confidence"], f"{row['label']} {row['confidence']:.2f}", image)


def summary_lines(outcome: PredictionSummary, table: Path) -> list[str]:
    """The end of a run in a few lines."""
    n = outcome.answered.total()
    few = outcome.first if n <= SHOWN else []
    found = [field_line(f"{row['confidence']:.4f}", f"{row['label']}  {row['path']}") for row in few]
    counts = ", ".join(f"{label} {number}" for label, number in outcome.answered.most_common(12))
    more = f", ... {len(outcome.answered) - 12} more labels" if len(outcome.answered) > 12 else ""
    found.append(field_line("Answered", f"{n} of {outcome.total}" + (f": {counts}{more}" if counts else "")))
    found += [
        field_line("Failed" if i == 0 else "", f"{name}: {error}") for i, (name, error) in enumerate(outcome.failed)
    ]
    if outcome.failures > len(outcome.failed):
        found.append(field_line("", f"... and {outcome.failures - len(outcome.failed)} more"))
    return [*found, field_line("Table", str(table))]


# --- copies ------------------------------------------------------------------------------------------------------


def folder_name(label: str) -> str:
    """A label as the name of one folder: what a checkpoint calls a class must not lead elsewhere."""
    return re.sub(r'[\\/:*?"<>|\0]', "_", label).strip(". ") or "_"


def copy_into(path: Path, folder: Path) -> Path:
    """Copy a file into a folder under its own name, or with _2, _3, ... behind it; a copy that is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        target = folder / (f"{path.stem}_{number}{path.suffix}" if number > 1 else path.name)
        if not target.exists():
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(path, part)
            part.replace(target)
            break
        if filecmp.cmp(path, target, shallow=False):
            break
    return target


# --- embeddings --------------------------------------------------------------------------------------------------


@contextmanager
def _embedding_writer(path: Path) -> Iterator[Any]:
    """A function that appends rows (D,) float32 to a .npy file, whose number is known at the end; None is NaN."""
    part = path.with_name(f"{path.name}.part")
    rows, width, waiting = 0, 0, 0

    def header() -> None:
        file.seek(0)
        about = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, about)  # it leaves room for more digits

    def append(features: Sequence[Tensor | None]) -> None:
        nonlocal rows, width, waiting
        known = next((f for f in features if f is not None), None)
        if width == 0 and known is None:
            waiting += len(features)  # until a picture says how long a row is
            return
        if width == 0 and known is not None:
            width = len(known)
            header()
            features, waiting = [*[None] * waiting, *features], 0
        blank = torch.full((width,), torch.nan)
        stacked = torch.stack([blank if f is None else f for f in features]).float().contiguous()
        file.write(stacked.numpy().astype("<f4", copy=False).data)
        rows += len(stacked)

    with part.open("w+b") as file:
        yield append
        rows += waiting
        header()
    part.replace(path)
