"""Write and print the result of checking a data set: lines, JSON, and a page with images."""

from __future__ import annotations

import random
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.inspection import checks
from finetune.inspection.finding import Finding, count_of
from finetune.inspection.inspect import Inspection
from finetune.inspection.scan import DatasetScan
from finetune.io import archives
from finetune.io.files import write_json
from finetune.reporting import html
from finetune.runtime import hardware
from finetune.runtime.console import echo, echo_link, field_line

GROUPS, FILES = 8, 12
"""How many groups of files, or single files, the page shows of a finding."""

EXAMPLES, EXAMPLE_CLASSES = 6, 12
"""How many images of a class the page shows as examples, and of how many classes."""

SHOWN_CLASSES = 200

SIDE = 160
"""Longest side of a thumbnail in pixels."""


# --- what is written ---------------------------------------------------------------------------------------------


def check_values(inspection: Inspection) -> dict[str, Any]:
    """Return what `check.json` holds."""
    scan = inspection.scan
    channels = checks.channel_statistics(scan)
    return {
        "root": str(scan.root.absolute()),
        "verdict": inspection.verdict,
        "problems": inspection.count("problem"),
        "warnings": inspection.count("warning"),
        "images": len(scan.images),
        "splits": inspection.split_sizes,
        "counts": scan.counts(),
        "findings": [finding.to_dict() for finding in inspection.findings],
        "errors": {image.key: error for image in scan.images if (error := scan.error_of(image.path)) is not None},
        "mean": channels[0] if channels else None,
        "std": channels[1] if channels else None,
        "weights": {"mean": inspection.preprocess.mean, "std": inspection.preprocess.std},
        "seconds": round(inspection.seconds, 3),
        "versions": hardware.installed_versions(),
    }


def write_check(inspection: Inspection, folder: Path, report: bool, command: Sequence[str]) -> None:
    """Write `check.json` and, with `report`, `check.html` with thumbnails.

    Args:
        inspection: the result.
        folder: for the files.
        report: whether to write the page.
        command: the words of the check, to be typed again.
    """
    write_json(check_values(inspection), folder / "check.json")
    if report:
        html.write_page(folder / "check.html", "check.html", **_page(inspection, shlex.join(command)))


def _page(inspection: Inspection, command: str) -> dict[str, Any]:
    scan = inspection.scan
    counts = scan.counts()
    rows = list(counts.items())
    return {
        "title": f"Check of {scan.root.name}",
        "root": str(scan.root),
        "verdict": inspection.verdict,
        "verdict_severity": next((s for s in ("problem", "warning") if inspection.count(s)), "good"),
        "properties": _properties(inspection),
        "findings": [(finding, *_thumbnails(scan, finding)) for finding in inspection.findings],
        "splits": list(scan.classes),
        "counts": rows[:SHOWN_CLASSES],
        "more_classes": max(0, len(rows) - SHOWN_CLASSES),
        "largest": max([sum(row.values()) for row in counts.values()], default=0) or 1,
        "examples": _examples(scan),
        "next_steps": _next_steps(inspection, command),
        "versions": hardware.installed_versions(),
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }


def _properties(inspection: Inspection) -> list[tuple[str, str]]:
    """Describe the images: name -> text."""
    scan, preprocess = inspection.scan, inspection.preprocess
    known = [info for _, info in scan.with_info()]
    formats = Counter(info.format for info in known)
    sides = sorted((min(info.width, info.height), max(info.width, info.height)) for info in known)
    sizes = ", ".join(f"{n} {name}" for name, n in inspection.split_sizes.items())
    result = [
        ("images", f"{len(known):,} of {count_of(len(scan.counts()), 'class')}" + (f": {sizes}" if sizes else "")),
        ("formats", ", ".join(f"{n:,} {name}" for name, n in formats.most_common(4)) or "none"),
    ]
    if sides:
        short, long = (statistics.median_low([pair[i] for pair in sides]) for i in (0, 1))
        text = f"median {short} x {long} pixels, shorter side {sides[0][0]} to {sides[-1][0]}"
        result.append(("size", f"{text}; the network sees {preprocess.size} x {preprocess.size}"))
    channels = checks.channel_statistics(scan)
    if channels:
        mean, std = map(checks.format_channels, channels)
        expected = f"{checks.format_channels(preprocess.mean)} and {checks.format_channels(preprocess.std)}"
        result.append(("red/green/blue", f"mean {mean}, standard deviation {std}; of the weights {expected}"))
    return result


def _thumbnails(scan: DatasetScan, finding: Finding) -> tuple[list[list[Any]], int]:
    """Return captions and thumbnails of the first files, by group, and the number of further files."""
    several = any(len(group) > 1 for group in finding.groups)
    shown = [group[:6] for group in finding.groups[: GROUPS if several else FILES]]
    return [[_thumbnail(scan, key) for key in group] for group in shown], finding.files - sum(map(len, shown))


def _thumbnail(scan: DatasetScan, key: str) -> tuple[str, Any]:
    path = scan.base / key
    error = scan.error_of(path)
    return (f"{key} {error}", None) if error else (key, html.thumbnail(path, SIDE))


def _examples(scan: DatasetScan) -> list[tuple[str, list[Any]]]:
    """Draw some images of each class, always the same."""
    result = []
    for name in list(scan.counts())[:EXAMPLE_CLASSES]:
        images = [image for image in scan.readable() if image.label == name]
        drawn = sorted(random.Random(0).sample(images, min(EXAMPLES, len(images))), key=lambda image: image.key)
        if drawn:
            result.append((name, [(image.key, html.thumbnail(image.path, SIDE)) for image in drawn]))
    return result


def _next_steps(inspection: Inspection, command: str) -> str:
    root = inspection.scan.root
    again = f"{command}    # once more"
    data = "csv" if root.is_file() and not archives.is_archive(root) else "imagefolder"
    train = shlex.join(["python", "-m", "finetune.train", f"data={data}", *inspection.data_words])
    return again if inspection.count("problem") else f"{train}\n{again}"


# --- what is printed ---------------------------------------------------------------------------------------------


def print_check(inspection: Inspection, folder: Path, report: bool) -> None:
    """Print the findings on the terminal."""
    scan = inspection.scan
    for name, text in _properties(inspection)[:1]:
        echo(field_line(name.capitalize(), f"{text}, at {scan.root}"))
    for finding in inspection.findings:
        echo(field_line(finding.severity.capitalize(), f"{finding.message} {finding.advice}".strip()))
        shown = 3 if finding.severity != "note" else 1
        for group in finding.groups[:shown]:
            error = scan.error_of(scan.base / group[0]) if len(group) == 1 else None
            echo(field_line("", _join(group) + (f": {error}" if error else "")))
        more = len(finding.groups) - shown
        if more > 0:
            echo(f"          and {more} more in check.json")
    echo(field_line("Verdict", f"{inspection.verdict}. {inspection.seconds:.1f} s; nothing was changed."))
    for name in ("check.html", "check.json") if report else ("check.json",):
        echo_link("See" if name == "check.html" else "", folder / name)


def _join(group: Sequence[str]) -> str:
    """Join the names of files that belong together."""
    more = f" = {len(group) - 4} more" if len(group) > 4 else ""
    return " = ".join(group[:4]) + more
