"""The check of a data set: what was found, as lines, as JSON, and as a page with the pictures."""

from __future__ import annotations

import random
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.images import info
from finetune.inspection import checks
from finetune.inspection.finding import Finding
from finetune.inspection.inspect import Inspection
from finetune.inspection.scan import DatasetScan
from finetune.io.files import write_json
from finetune.reporting import html
from finetune.runtime import hardware
from finetune.runtime.console import echo, echo_link, field_line

GROUPS, FILES = 8, 12
"""Of a finding, on the page: groups of several files, or single files."""

FACES, FACED = 6, 12
"""Pictures of a class drawn for the page, and classes of which some are."""

SHOWN_CLASSES = 200


# --- what is written ---------------------------------------------------------------------------------------------


def values(found: Inspection) -> dict[str, Any]:
    """As `check.json` holds them."""
    channels = checks.channel_statistics(found.survey)
    bad = {p.key: reason for p in found.survey.pictures if (reason := found.survey.facts[p.path].error) is not None}
    return {
        "root": str(found.survey.root.absolute()),
        "verdict": found.verdict,
        "problems": found.count("problem"),
        "warnings": found.count("warning"),
        "pictures": len(found.survey.pictures),
        "splits": found.sizes,
        "counts": found.survey.counts(),
        "findings": [f.to_dict() for f in found.findings],
        "reasons": bad,
        "mean": channels[0] if channels else None,
        "std": channels[1] if channels else None,
        "weights": {"mean": found.preprocess.mean, "std": found.preprocess.std},
        "seconds": round(found.seconds, 3),
        "versions": hardware.installed_versions(),
    }


def write_check(found: Inspection, folder: Path, report: bool, command: Sequence[str]) -> None:
    """`check.json`, and `check.html` with thumbnails."""
    write_json(values(found), folder / "check.json")
    if report:
        html.write_page(folder / "check.html", "check.html", **_page(found, shlex.join(command)))


def _page(found: Inspection, command: str) -> dict[str, Any]:
    survey = found.survey
    counts = survey.counts()
    named = list(counts.items())
    return {
        "title": f"Check of {survey.root.name}",
        "root": str(survey.root),
        "verdict": found.verdict,
        "verdict_level": "problem" if found.count("problem") else "warning" if found.count("warning") else "good",
        "facts": _facts(found),
        "shown": [(f, *_groups(survey, f)) for f in found.findings],
        "splits": list(survey.classes),
        "counts": named[:SHOWN_CLASSES],
        "more_classes": max(0, len(named) - SHOWN_CLASSES),
        "largest": max([sum(row.values()) for row in counts.values()], default=0) or 1,
        "faces": _faces(survey),
        "next": _next(found, command),
        "versions": hardware.installed_versions(),
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }


def _facts(found: Inspection) -> list[tuple[str, str]]:
    survey = found.survey
    readable = [survey.facts[p.path] for p in survey.readable()]
    formats = Counter(f.format for f in readable)
    sides = sorted((min(f.width, f.height), max(f.width, f.height)) for f in readable)
    sizes = ", ".join(f"{n} {name}" for name, n in found.sizes.items())
    pairs = [
        ("pictures", f"{len(readable):,} of {len(survey.counts())} classes" + (f": {sizes}" if sizes else "")),
        ("kinds", ", ".join(f"{n:,} {kind}" for kind, n in formats.most_common(4)) or "none"),
    ]
    if sides:
        middle = (statistics.median_low([s for s, _ in sides]), statistics.median_low([x for _, x in sides]))
        text = f"median {middle[0]} x {middle[1]} pixels, shorter side {sides[0][0]} to {sides[-1][0]}"
        pairs.append(("size", f"{text}; the network sees {found.preprocess.size} x {found.preprocess.size}"))
    channels = checks.channel_statistics(survey)
    if channels:
        mean, std = map(checks.format_channels, channels)
        theirs = f"{checks.format_channels(found.preprocess.mean)} and {checks.format_channels(found.preprocess.std)}"
        pairs.append(("red/green/blue", f"mean {mean}, spread {std}; of the weights {theirs}"))
    return pairs


def _groups(survey: DatasetScan, finding: Finding) -> tuple[list[list[Any]], int]:
    """Thumbnails of the first files, and how many more there are."""
    several = any(len(group) > 1 for group in finding.groups)
    shown = [group[:6] for group in finding.groups[: GROUPS if several else FILES]]
    thumbs: list[list[Any]] = []
    for group in shown:
        thumbs.append([])
        for key in group:
            path = survey.base / key
            reason = survey.facts.get(str(path), info.ImageInfo()).error
            thumbs[-1].append((f"{key} {reason}" if reason else key, None if reason else html.thumbnail(path, 160)))
    return thumbs, finding.files - sum(map(len, shown))


def _faces(survey: DatasetScan) -> list[tuple[str, list[Any]]]:
    """Some pictures of each class, always the same."""
    drawn = []
    for name in list(survey.counts())[:FACED]:
        own = [p for p in survey.readable() if p.label == name]
        some = sorted(random.Random(0).sample(own, min(FACES, len(own))), key=lambda p: p.key)
        if some:
            drawn.append((name, [(p.key, html.thumbnail(p.path, 160)) for p in some]))
    return drawn


def _next(found: Inspection, command: str) -> str:
    root = shlex.quote(str(found.survey.root))
    again = f"{command}    # once more"
    data = "csv" if found.survey.root.is_file() else "imagefolder"
    train = f"python -m finetune.train data={data} data.root={root}"
    return again if found.count("problem") else f"{train}\n{again}"


def _together(group: Sequence[str]) -> str:
    """Names that belong together, in a line."""
    more = f" = {len(group) - 4} more" if len(group) > 4 else ""
    return " = ".join(group[:4]) + more


def print_check(found: Inspection, folder: Path, report: bool) -> None:
    """The findings on the terminal, in words."""
    for name, text in _facts(found)[:1]:
        echo(field_line(name.capitalize(), f"{text}, at {found.survey.root}"))
    for finding in found.findings:
        echo(field_line(finding.level.capitalize(), f"{finding.says} {finding.do}".strip()))
        names = [_together(group) for group in finding.groups]
        for name in names[: 3 if finding.level != "note" else 1]:
            reason = found.survey.facts.get(str(found.survey.base / name), info.ImageInfo()).error
            echo(f"          {name}" + (f": {reason}" if reason else ""))
        more = len(names) - (3 if finding.level != "note" else 1)
        if more > 0:
            echo(f"          and {more} more in check.json")
    echo(field_line("Verdict", f"{found.verdict}. {found.seconds:.1f} s; nothing was changed."))
    for name in ("check.html", "check.json") if report else ("check.json",):
        echo_link("See" if name == "check.html" else "", folder / name)
