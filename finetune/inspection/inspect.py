"""Inspect a data set: decode every file and run every check."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from finetune.data.datamodule import ImageDataModule
from finetune.images import decode, info
from finetune.images.transforms import Preprocess
from finetune.inspection import checks, scan
from finetune.inspection.finding import Finding
from finetune.inspection.scan import DatasetScan
from finetune.runtime.console import progress_bar


@dataclass
class Inspection:
    """What came out."""

    survey: DatasetScan
    findings: list[Finding]
    sizes: dict[str, int]
    """Split -> pictures, as training would have them; empty if it would not start."""
    preprocess: Preprocess
    seconds: float

    def count(self, level: str) -> int:
        """Findings of a level."""
        return sum(f.level == level for f in self.findings)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        problems, warnings = self.count("problem"), self.count("warning")
        if problems:
            return f"Not yet: {problems} problem{'s' * (problems > 1)}" + (
                f" and {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
            )
        return f"Ready; {warnings} thing{'s' * (warnings > 1)} to look at" if warnings else "Ready"


def inspect_data(data: ImageDataModule, near: int = checks.PHASH_THRESHOLD) -> Inspection:
    """Decode every file below a root, and say what there is to say.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the data are not files.
    """
    began = time.perf_counter()
    if data.root is None or data.dataset is not None:
        raise ValueError(
            "check looks at folders and tables of pictures; torchvision's data sets were checked by others."
        )
    data.prepare_data()
    if not data.root.exists():
        raise FileNotFoundError(f"data.root={data.root}: there is no such folder (looked from {Path.cwd()}).")
    found = scan.scan_folder(data.root)
    if data.only_classes is not None:
        found.only(data.only_classes)
    others = [str(found.base / key) for key in found.others if decode.is_decodable(key)]
    paths = [p.path for p in found.pictures] + others
    found.facts = info.scan_images(
        paths, data.root, data.cache, full=True, track=lambda items, n: progress_bar(items, f"{n} files", n)
    )
    extra = []
    try:
        data.setup()
    except (ValueError, OSError) as error:
        extra.append(Finding("refused", "problem", f"Training would not start: {error}"))
    if "val" in data.splits:
        known = {p.key for p in found.pictures if p.split == "val"}
        found.held_out = set(data.splits["val"].keys) - known
        extra.append(checks.validation_uncertainty(len(data.splits["val"])))
    if not info.can_hash():
        text = "Near duplicates were not looked for: that needs the package imagehash."
        extra.append(Finding("no_near_duplicates", "note", text, "pip install 'finetune-lightning[inspect]'"))
    every = checks.by_severity([*checks.run_checks(found, data.final_preprocess, near), *extra])
    sizes = {name: len(split) for name, split in data.splits.items()}
    return Inspection(found, every, sizes, data.final_preprocess, time.perf_counter() - began)
