"""Check a folder and look a finding up by its name."""

from __future__ import annotations

from pathlib import Path

from finetune.images import info
from finetune.images.transforms import Preprocess
from finetune.inspection import scan
from finetune.inspection.checks import run_checks
from finetune.inspection.finding import Finding


def found_in(root: Path, preprocess: Preprocess | None = None) -> dict[str, Finding]:
    """Findings by name."""
    scanned = scan.scan_folder(root)
    scanned.image_info = info.scan_images([image.path for image in scanned.images], full=True)
    return {f.name: f for f in run_checks(scanned, preprocess)}
