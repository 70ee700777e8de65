"""Inspect a data set: decode every file and run every check."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from finetune.data.class_names import EmptyClassError
from finetune.data.datamodule import ImageDataModule
from finetune.images import info
from finetune.images.transforms import Preprocess
from finetune.inspection import checks
from finetune.inspection.data_words import data_words
from finetune.inspection.finding import Finding, count_of
from finetune.inspection.groups import group_findings, shared_group_findings
from finetune.inspection.scan import DatasetScan, scan_folder, scan_splits
from finetune.io import formats
from finetune.runtime.console import progress_bar


@dataclass
class Inspection:
    """Hold the result of inspecting a data set."""

    scan: DatasetScan
    findings: list[Finding]
    """The most severe first."""
    split_sizes: dict[str, int]
    """Split -> number of images, as training would use them; empty if training would not start."""
    preprocess: Preprocess
    seconds: float
    data_words: list[str]
    """Arguments that name the data, for another command."""

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def verdict(self) -> str:
        """Return whether the data are ready for training, in a sentence."""
        problems, warnings = self.count("problem"), self.count("warning")
        if problems:
            more = f" and {count_of(warnings, 'warning')}" if warnings else ""
            return f"Not yet: {count_of(problems, 'problem')}{more}"
        return f"Ready; {count_of(warnings, 'thing')} to look at" if warnings else "Ready"


def inspect_data(data: ImageDataModule, phash_threshold: int = checks.PHASH_THRESHOLD) -> Inspection:
    """Decode every file below the root of the data, and run every check.

    Args:
        data: images in a folder or a table.
        phash_threshold: see `checks.PHASH_THRESHOLD`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the data are not files.
    """
    began = time.perf_counter()
    if data.root is None or data.dataset is not None:
        raise ValueError("check looks at folders and tables of images; torchvision's data sets were checked by others.")
    data.prepare_data()
    if not data.root.exists():
        raise FileNotFoundError(f"data.root={data.root}: there is no such folder (looked from {Path.cwd()}).")
    scan = scan_folder(data.root, data.reading, data.cache)
    if data.splitting.classes is not None:
        scan.keep_classes(data.splitting.classes)
    skipped = [str(scan.base / key) for key in scan.skipped_files if formats.has_image_ending(key)]
    paths = [image.path for image in scan.images] + skipped
    scan.image_info = info.scan_images(
        paths,
        data.root,
        data.cache,
        full=True,
        track=lambda items, n: progress_bar(items, f"{n} files", n),
        max_pixels=data.image_options.limit,
    )
    more = []
    try:
        data.setup()
    except (ValueError, OSError) as error:
        refused = [Finding("refused", "problem", f"Training would not start: {error}")]
        if isinstance(error, EmptyClassError):
            scan.told_empty = {(split, name) for split in (error.split, "") for name in error.classes}
    else:
        refused = []
    depth = data.final_preprocess.depth
    scan.image_info = {path: details.scaled(depth) for path, details in scan.image_info.items()}
    if "val" in data.splits:
        val_keys = {image.key for image in scan.images if image.split == "val"}
        scan.holdout = set(data.splits["val"].keys) - val_keys
        more.append(checks.validation_uncertainty(len(data.splits["val"])))
    more += group_findings(scan, data.splits)
    used = scan_splits(data.root, data.splits, data.classes, data.image_info) if data.splits else scan
    found = checks.run_checks(scan, data.final_preprocess, phash_threshold, used)
    # what follows from a folder that is read as it is not meant would lead away from the reason
    found = [finding for finding in found if not (refused and finding.name in ("one_class", "nested"))]
    findings = checks.by_severity([*refused, *found, *more])
    sizes = {name: len(split) for name, split in data.splits.items()}
    return Inspection(scan, findings, sizes, data.final_preprocess, time.perf_counter() - began, data_words(data))


def training_findings(data: ImageDataModule) -> list[Finding]:
    """Return what may spoil the result of a training: duplicates across splits, groups, uneven classes and the like.

    Args:
        data: prepared; no file is opened again.
    """
    scan = scan_splits(data.root, data.splits, data.classes, data.image_info)
    found = checks.run_training_checks(scan, data.final_preprocess.fit)
    return checks.by_severity([*found, *shared_group_findings(data.splits)])
