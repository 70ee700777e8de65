"""Find the images that a model is evaluated on: those that its run held out, or others with the same class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from finetune.checkpoints.metadata import DataRecord, SplitRecord
from finetune.data import image_options
from finetune.data.class_names import match_names
from finetune.data.datamodule import ImageDataModule
from finetune.data.readers import FileReader, LabelledImages, subset
from finetune.data.sources import base_folder
from finetune.data.splits import Split, sample_content
from finetune.data.splitting import label_numbers, without_bad_files
from finetune.images import decode, info, similarity
from finetune.images.conversions import describe_cut_off
from finetune.io import formats
from finetune.io.store import Cache
from finetune.runtime.suggestions import unknown_name


@dataclass(frozen=True)
class EvalDataset:
    """Images with labels in the order of a model's classes."""

    split: Split
    description: str
    """Which images these are, for people."""
    is_holdout: bool
    """Whether they are exactly those that the run held out."""
    notes: list[str] = field(default_factory=list)
    bad_files: dict[str, str] = field(default_factory=dict)
    is_scanned: bool = False
    """Whether the notes say already which files are read in part."""
    trained_on: int | None = None
    """How many of them the model was trained on, see `find_trained_on`; None where that is not known."""
    near_duplicates: dict[str, int] | None = None
    """Name -> bits of 64 in which the perceptual hash differs from the nearest training image's, of other images that look
    like one; None where that is not known."""


def find_eval_data(record: DataRecord, classes: Sequence[str], name: str, data: ImageDataModule) -> EvalDataset:
    """Find the images to evaluate a model on.

    Args:
        record: what the model's checkpoint says of its data.
        classes: of the model.
        name: "val" or "test".
        data: where to look. Without root and data set, where the run had its images. A root in which the run's
            held-out files lie stands for those; any other is new data, of which all images are taken where it has no
            split of that name.

    Raises:
        FileNotFoundError: a folder or some of the held-out files are not there.
        ValueError: the checkpoint lists none, classes are unknown to the model, or there are no images.
    """
    if data.root is None and data.dataset is None:
        return find_holdout(record, name, data.cache)
    data.prepare_data()
    source, holdout = data.source(), record.splits.get(name)
    found = source.evaluation_splits(name)
    if holdout is not None and holdout.keys:
        if data.dataset is not None:
            same = _same_items(found, holdout, classes, name)
        else:
            same = _same_files(found, holdout, name, data) if holdout.sizes and data.root is not None else None
        if same is not None:
            return same
    new = _new_data(found, classes, name, data, _limit(record, data))
    return replace(new, notes=[*source.notes, *new.notes, *formats.note_on_skipped_files(source.skipped_files)])


def find_cut_off(images: EvalDataset) -> EvalDataset:
    """Find the files that end too early, and say it in a note, where no scan has said it."""
    paths = images.split.load.paths
    if images.is_scanned or paths is None:
        return images
    cut = {path: missing for path in paths if (missing := decode.missing_rows(path)) is not None}
    if not cut:
        return images
    note = f"{len(cut)} of {len(paths)} images {describe_cut_off(list(cut.values()))} ({next(iter(cut))} for one)"
    return replace(images, notes=[*images.notes, note])


def find_trained_on(record: DataRecord, images: EvalDataset, data: ImageDataModule) -> EvalDataset:
    """Find the images that a model was trained on, also under other names, and near duplicates; say it in notes.

    Args:
        record: what the model's checkpoint says of its data.
        images: to evaluate it on; of those that are not files, and of checkpoints without hashes, nothing is known.
        data: where they were found; its cache may hold their hashes.
    """
    paths = images.split.load.paths
    if record.trained_on is None or paths is None:
        return images
    if record.phashes is None:
        found = info.hash_files(paths)
    else:
        root = data.root or (Path(record.root) if record.root is not None else None)
        found = info.scan_images(paths, root, data.cache, max_pixels=_limit(record, data))
    files = [(key, found[path]) for key, path in zip(images.split.keys, paths, strict=True) if found[path].sha1]
    known = torch.isin(info.short_hashes([file.sha1 for _, file in files]), record.trained_on).tolist()
    count, notes = sum(known), list(images.notes)
    if count:
        which = f"{count} of these {len(paths)} images {'was' if count == 1 else 'were'} trained on"
        notes.append(f"{which}: their accuracy says nothing about new ones")
    near = None
    if record.phashes is not None:
        others = [(key, file.phash) for (key, file), same in zip(files, known, strict=True) if file.phash and not same]
        near = _near_duplicates(others, record.phashes)
        if near:
            look = f"{len(near)} of these {len(paths)} images look{'s' if len(near) == 1 else ''} like a training image"
            notes.append(f"{look} (near_duplicates.csv lists them): where they show the same, the accuracy is too good")
    elif not images.is_holdout and record.loader is None:
        notes.append(
            "near duplicates of training images are not looked for: the checkpoint has no perceptual hashes of those"
        )
    return replace(images, trained_on=count, near_duplicates=near, notes=notes)


def _limit(record: DataRecord, data: ImageDataModule) -> int:
    """Return how many pixels an image may have: what was given, and no less than in the run."""
    return max(data.image_options.limit, record.max_pixels or 0)


def _near_duplicates(hashes: Sequence[tuple[str, str]], trained_on: torch.Tensor) -> dict[str, int]:
    """Return the names whose perceptual hashes are near one of the training images, with the bits between them."""
    trained = trained_on.numpy().view(np.uint64)
    distances = similarity.nearest_distances([phash for _, phash in hashes], trained, similarity.NEAR_BITS)
    return {key: bits for (key, _), bits in zip(hashes, distances, strict=True) if bits is not None}


def find_holdout(record: DataRecord, name: str, cache: Cache | None = None) -> EvalDataset:
    """Find the run's held-out images where the checkpoint says that they are; see `find_eval_data`."""
    holdout = record.splits.get(name)
    if holdout is None or not holdout.keys:
        known = ", ".join(record.splits) or "none"
        raise ValueError(
            f"The checkpoint lists no {name} images (it has: {known}). Say what to evaluate on with data.root=FOLDER."
        )
    if record.dataset or not holdout.sizes:
        raise ValueError(
            f"The run's images are those of {record.dataset}; name them: data={str(record.dataset).lower()}, "
            f"and data.root=... if they are not at {record.root}."
        )
    root = Path(str(record.root))
    base = base_folder(root, cache)
    missing = len(holdout.keys) - len(_present(holdout, base)[1])
    if missing:
        raise FileNotFoundError(
            f"{missing} of the run's {len(holdout.keys)} {name} images are not at {root} as they were. If the folder was "
            "moved, give the new place: data.root=FOLDER."
        )
    return _held_out_files(holdout, base, name)


# --- the run's own images ----------------------------------------------------------------------------------------


def _same_files(
    found: Mapping[str, LabelledImages], holdout: SplitRecord, name: str, data: ImageDataModule
) -> EvalDataset | None:
    """Return the run's held-out images where they lie below a root now; None if these are others."""
    root = data.root or Path()
    base = base_folder(root, data.cache)
    if base != root:  # a table, or an archive, stands for the run if it lists them
        if not {key for images in found.values() for key in images.keys}.issuperset(holdout.keys):
            return None
    elif any(Path(key).is_absolute() or ".." in Path(key).parts for key in holdout.keys):
        return None
    present, unchanged = _present(holdout, base)
    total = len(holdout.keys)
    if len(unchanged) == total:
        return _held_out_files(holdout, base, name)
    if 2 * len(unchanged) >= total:
        missing = sorted(set(holdout.keys) - set(unchanged))
        raise FileNotFoundError(
            f"data.root={root} has {len(unchanged)} of the {total} {name} images of the run; it lacks, or has "
            f"with another size, {', '.join(missing[:3])}. Put them back: a number from some of them is another number."
        )
    if len(present) == total and "" in found:  # in a folder without splits, the others were trained on
        changed = total - len(unchanged)
        note = f"{changed} of them have another size than then; the other images there were trained on"
        return replace(_held_out_files(holdout, base, name), is_holdout=False, notes=[note])
    return None


def _present(holdout: SplitRecord, base: Path) -> tuple[list[str], list[str]]:
    """Return the held-out files that lie below a folder, see `sources.base_folder`, and those with the size that they had."""
    present, unchanged = [], []
    for key, stored_size in zip(holdout.keys, holdout.sizes or [], strict=True):
        try:
            size = (base / key).stat().st_size
        except OSError:
            continue
        present.append(key)
        if size == stored_size:
            unchanged.append(key)
    return present, unchanged


def _held_out_files(holdout: SplitRecord, base: Path, name: str) -> EvalDataset:
    reader = FileReader([str(base / key) for key in holdout.keys])
    split = Split(name, list(holdout.keys), list(holdout.labels), reader)
    return EvalDataset(split, f"the {len(split)} {name} images of the run, at {base}", is_holdout=True)


def _same_items(
    found: Mapping[str, LabelledImages], holdout: SplitRecord, classes: Sequence[str], name: str
) -> EvalDataset | None:
    """Return the run's held-out images in a torchvision data set, whose keys are `<split>/<index>`."""
    labels = {key: label for images in found.values() for key, label in zip(images.keys, images.labels, strict=True)}
    if any(labels.get(key) != classes[label] for key, label in zip(holdout.keys, holdout.labels, strict=True)):
        return None  # another data set
    parts = {key.split("/")[0] for key in holdout.keys}
    if len(parts) > 1:
        return None
    reader = found[parts.pop()].reader
    split = Split(
        name, list(holdout.keys), list(holdout.labels), subset(reader, [int(key.split("/")[1]) for key in holdout.keys])
    )
    if holdout.content is not None and sample_content(split) != holdout.content:
        return None  # another data set, with the same labels
    return EvalDataset(split, f"the {len(split)} {name} images of the run, of {reader.kind}", is_holdout=True)


# --- new data ----------------------------------------------------------------------------------------------------


def _new_data(
    found: Mapping[str, LabelledImages], classes: Sequence[str], name: str, data: ImageDataModule, max_pixels: int
) -> EvalDataset:
    """Return images that the run did not hold out, their classes mapped by name onto the model's."""
    part = name if name in found else ""
    if part not in found:
        raise ValueError(unknown_name("split", name, found, f"The data have {', '.join(found)}: split=..."))
    images, options = found[part], data.splitting
    images = replace(images, labels=match_names(images.labels, classes))
    if options.classes is not None:
        wanted = set(match_names(options.classes, [*classes, *dict.fromkeys(images.labels)]))
        images = images.select([label in wanted for label in images.labels])
    image_info = info.scan_images(images.reader.paths or [], data.root, data.cache, max_pixels=max_pixels)
    readable, bad_files = without_bad_files({"": images}, image_info, options.on_bad_file)
    images = readable[""]
    present = set(images.labels)
    unknown = sorted(present - set(classes))
    if unknown:
        raise ValueError(
            f"The images have classes that the model does not know: {', '.join(unknown[:10])}. It knows "
            f"{', '.join(classes[:10])}. Rename the folders, or leave some out with data.classes=[...]."
        )
    if not images.labels:
        raise ValueError(f"There are no images to evaluate the model on in {data.root}.")
    missing = [c for c in classes if c not in present]
    notes = [f"there are no images of {', '.join(missing[:10])}"] if missing else []
    known = [(path, image_info[path]) for path in images.reader.paths or []]
    notes += image_options.odd_file_notes(known)
    notes += image_options.outside_notes(known, (data.preprocess or data.final_preprocess).depth)
    notes += image_options.full_notes(known) if (data.preprocess or data.final_preprocess).depth is None else []
    split = Split(name, images.keys, label_numbers(images.labels, classes), images.reader)
    which = f"the {part} split" if part else "all"
    text = f"{len(split)} images, {which} of {data.root or images.reader.kind}"
    return EvalDataset(split, text, is_holdout=False, notes=notes, bad_files=bad_files, is_scanned=True)
