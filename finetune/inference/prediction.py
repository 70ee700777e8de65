"""Predict many images in flat memory, and write a row for each."""

from __future__ import annotations

import filecmp
import heapq
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.images import decode
from finetune.images.conversions import describe_cut_off
from finetune.inference import prediction_table
from finetune.inference.classifier import BATCH, Classifier
from finetune.inference.inputs import Inputs, LoadedImage, is_address, read_input, read_inputs
from finetune.runtime import hardware
from finetune.runtime.console import field_line, progress_bar, short_path

SHOWN = 8
"""Images in each half of the gallery, and predictions on the terminal where there are no more."""


NEVER_DEEP = (".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp")
"""Endings of files that are not opened again to see whether they have more than 8 bits."""


@dataclass
class PredictionSummary:
    """How many images were predicted as what, and which could not be read."""

    predicted: Counter[str] = field(default_factory=Counter)
    """Label to number of images."""
    accepted: int | None = None
    """Number of predictions whose confidence reaches the threshold; None where there is none."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """The first images that could not be read, with the reason."""
    failures: int = 0
    outside: int = 0
    """Images of grey of more than 8 bits that are nearly all black or white by the range of the model."""
    unscaled: int = 0
    """Images of grey of more than 8 bits, for which the model has no range."""
    cut_off: int = 0
    """Files that end too early, and whose missing rows are grey."""
    first_cut_off: str = ""
    missing: float = 0.0
    """The largest share of the rows that one of them lacks."""
    first: list[prediction_table.Row] = field(default_factory=list)
    """The first rows with a prediction."""
    gallery: Gallery = field(default_factory=lambda: Gallery())

    @property
    def total(self) -> int:
        """Return the number of inputs."""
        return self.predicted.total() + self.failures


class Gallery:
    """The most and the least certain images so far."""

    def __init__(self) -> None:
        """Begin without images."""
        self._most: list[Any] = []
        self._least: list[Any] = []
        self._number = count()  # settles ties, so that images are never compared

    def add(self, confidence: float, caption: str, image: Tensor) -> None:
        """Keep an image, uint8 (3, H, W), if it is among the most or the least certain."""
        number = next(self._number)
        for heap, rank in ((self._most, confidence), (self._least, -confidence)):
            if len(heap) < SHOWN or rank > heap[0][0]:
                (heapq.heappush if len(heap) < SHOWN else heapq.heapreplace)(
                    heap, (rank, -number, caption, image.clone())
                )

    def rows(self) -> dict[str, list[tuple[Tensor, str]]]:
        """Return title to images and captions, as `figures.save_gallery` takes them; empty without an image."""
        if not self._most:
            return {}
        return {
            title: [(image, caption) for _, _, caption, image in sorted(heap, reverse=True, key=lambda item: item[:2])]
            for title, heap in (("most certain", self._most), ("least certain", self._least))
        }


def predict(
    model: Classifier,
    inputs: Inputs,
    table: Path,
    *,
    k: int = 5,
    min_confidence: float | None = None,
    embeddings: Path | None = None,
    copy_to: Path | None = None,
) -> PredictionSummary:
    """Predict every image and write a row for each, in order.

    Args:
        model: on its device, in its precision, at its temperature.
        inputs: names of the images.
        table: .csv, .jsonl or .parquet.
        k: how many classes a row names.
        min_confidence: a column `accepted` says which confidences reach it, 1 or 0; None leaves it out.
        embeddings: a .npy file for what enters the head, a row (D,) for each of the table, NaN where there is none.
        copy_to: copies of the images go below it, into a folder per label.

    Raises:
        ValueError: `copy_to` lies in the folder of the inputs, or the files cannot be decoded for this model.
    """
    model.require_decodable()
    summary, k = PredictionSummary(accepted=None if min_confidence is None else 0), min(k, len(model.classes))
    if copy_to is not None and inputs.folder is not None and copy_to.resolve().is_relative_to(inputs.folder.resolve()):
        raise ValueError(
            f"copy_to={copy_to} lies in the source, {inputs.folder}: the next run would read the copies too."
        )
    with ExitStack() as stack:
        columns = prediction_table.column_names(k, *([] if min_confidence is None else [prediction_table.ACCEPTED]))
        append = stack.enter_context(prediction_table.open_table(table, columns))
        append_embeddings = stack.enter_context(_embedding_writer(embeddings)) if embeddings else None
        batches = read_inputs(
            inputs.names,
            model.transform,
            BATCH,
            _num_workers(inputs, model),
            read=partial(read_input, decoding=model.decoding),
        )
        loaded = progress_bar(chain.from_iterable(batches), "images", inputs.total)
        while batch := list(islice(loaded, BATCH)):
            probabilities, features = _run(model, batch, embed=append_embeddings is not None)
            rows = [
                prediction_table.failure_row(item.name, item.error)
                if p is None
                else prediction_table.prediction_row(item.name, p, model.classes, k, min_confidence)
                for item, p in zip(batch, probabilities, strict=True)
            ]
            append(rows)
            if append_embeddings is not None:
                append_embeddings(features)
            for item, row in zip(batch, rows, strict=True):
                _count(summary, item, row)
                if _has_deep_grey(item):
                    summary.unscaled += model.decoding.depth is None
                    summary.outside += model.decoding.depth is not None and _is_flat(item)
                _count_cut_off(summary, item)
                if copy_to is not None and row["status"] == "ok" and not is_address(item.name):
                    copy_into(Path(item.name), copy_to / folder_name(row["label"]))
    return summary


def _num_workers(inputs: Inputs, model: Classifier) -> int:
    """Return the number of worker processes; none for names that come one by one, and for addresses."""
    if not isinstance(inputs.names, list) or any(map(is_address, inputs.names)):
        return 0
    return hardware.default_num_workers(len(inputs.names), model.device.type == "cpu")


def _run(
    model: Classifier, batch: Sequence[LoadedImage], embed: bool
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return probabilities and features of each image, None for those that could not be read."""
    readable = [item.image is not None for item in batch]
    if not any(readable):
        return [None] * len(batch), [None] * len(batch)
    stacked = torch.stack([item.image for item in batch if item.image is not None])
    t = model.temperature
    logits, features = model.logits_and_features(stacked, t) if embed else (model.logits(stacked, t), None)
    probabilities = iter(logits.double().softmax(dim=1))
    rows = iter(features if features is not None else ())
    return (
        [next(probabilities) if r else None for r in readable],
        [next(rows) if r and embed else None for r in readable],
    )


def _has_deep_grey(item: LoadedImage) -> bool:
    if item.image is None or is_address(item.name) or item.name.lower().endswith(NEVER_DEEP):
        return False
    return decode.has_deep_grey(item.name)


def _is_flat(item: LoadedImage) -> bool:
    """Return whether most of an image's pixels are quite black or quite white."""
    image = item.image
    return (
        image is not None and image.dtype == torch.uint8 and float(((image == 0) | (image == 255)).float().mean()) > 0.5
    )


def _count_cut_off(summary: PredictionSummary, item: LoadedImage) -> None:
    missing = None if item.image is None or is_address(item.name) else decode.missing_rows(item.name)
    if missing is not None:
        summary.cut_off += 1
        summary.first_cut_off = summary.first_cut_off or item.name
        summary.missing = max(summary.missing, missing)


def _count(summary: PredictionSummary, item: LoadedImage, row: prediction_table.Row) -> None:
    if item.image is None:
        summary.failures += 1
        if len(summary.failed) < 5:
            summary.failed.append((item.name, item.error))
        return
    summary.predicted[row["label"]] += 1
    if summary.accepted is not None:
        summary.accepted += row[prediction_table.ACCEPTED]
    if len(summary.first) < SHOWN:
        summary.first.append(row)
    image = item.image if item.image.ndim == 3 else item.image[0]
    summary.gallery.add(row["confidence"], f"{row['label']} {row['confidence']:.2f}", image)


def summary_lines(summary: PredictionSummary, table: Path) -> list[str]:
    """Return the end of a prediction for the terminal."""
    n = summary.predicted.total()
    first = summary.first if n <= SHOWN else []
    lines = [field_line(f"{row['confidence']:.4f}", f"{row['label']}  {row['path']}") for row in first]
    counts = ", ".join(f"{label} {number}" for label, number in summary.predicted.most_common(12))
    more = f", ... {len(summary.predicted) - 12} more labels" if len(summary.predicted) > 12 else ""
    lines.append(field_line("Predicted", f"{n} of {summary.total}" + (f": {counts}{more}" if counts else "")))
    if summary.accepted is not None:
        share = f", {summary.accepted / n:.1%}" if n else ""
        text = f"{summary.accepted} of {n}{share}; {n - summary.accepted} are unsure, with 0 in the column {prediction_table.ACCEPTED}"
        lines.append(field_line("Accepted", text))
    failed = enumerate(summary.failed)
    lines += [field_line("Failed" if i == 0 else "", f"{name}: {error}") for i, (name, error) in failed]
    if summary.failures > len(summary.failed):
        lines.append(field_line("", f"... and {summary.failures - len(summary.failed)} more"))
    if summary.outside:
        text = f"{summary.outside} images of more than 8 bits are mostly black or white: their counts lie outside of those that the model "
        lines.append(field_line("Note", f"{text}was trained on"))
    if summary.unscaled:
        text = f"grey of more than 8 bits in {summary.unscaled} images, and the model was not trained on such: all of 16 bits became "
        lines.append(field_line("Note", f"{text}black to white, so that counts of 10 to 14 bits are nearly black"))
    if summary.cut_off:
        text = (
            f"{summary.cut_off} of {n} images {describe_cut_off([summary.missing])} ({summary.first_cut_off} for one)"
        )
        lines.append(field_line("Note", text))
    return [*lines, field_line("Table", short_path(table))]


# --- copies ------------------------------------------------------------------------------------------------------


def folder_name(label: str) -> str:
    """Return a label as the name of one folder: what a checkpoint calls a class must not lead elsewhere."""
    return re.sub(r'[\\/:*?"<>|\0]', "_", label).strip(". ") or "_"


def copy_into(path: Path, folder: Path) -> Path:
    """Copy a file into a folder under its own name, or with _2, _3, ... behind it; an existing copy stays."""
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
    """Yield a function that appends rows (D,) float32 to a .npy file, whose number is known at the end; None is NaN."""
    part = path.with_name(f"{path.name}.part")
    rows, width, waiting = 0, 0, 0

    def header() -> None:
        file.seek(0)
        fields = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, fields)  # it leaves room for more digits

    def append(features: Sequence[Tensor | None]) -> None:
        nonlocal rows, width, waiting
        known = next((f for f in features if f is not None), None)
        if width == 0 and known is None:
            waiting += len(features)  # until an image shows how long a row is
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
