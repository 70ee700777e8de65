"""The check of a data set: what was found, as lines, as JSON, and as a page with the pictures."""

from __future__ import annotations

import random
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import facts, findings, images, machine, pages, survey
from finetune.checkpoint import write_json
from finetune.console import entry, link, progress, say
from finetune.data import ImageDataModule
from finetune.findings import Finding
from finetune.preprocess import Preprocess
from finetune.survey import Survey

GROUPS, FILES = 8, 12
"""Of a finding, on the page: groups of several files, or single files."""
FACES, FACED = 6, 12
"""Pictures of a class drawn for the page, and classes of which some are."""
SHOWN_CLASSES = 200


@dataclass
class Inspection:
    """What came out."""

    survey: Survey
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


def inspect(data: ImageDataModule, near: int = findings.NEAR) -> Inspection:
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
    found = survey.of_folder(data.root)
    if data.only_classes is not None:
        found.only(data.only_classes)
    others = [str(found.base / key) for key in found.others if images.opens(key)]
    paths = [p.path for p in found.pictures] + others
    found.facts = facts.look(
        paths, data.root, data.cache, full=True, track=lambda items, n: progress(items, f"{n} files", n)
    )
    extra = []
    try:
        data.setup()
    except (ValueError, OSError) as error:
        extra.append(Finding("refused", "problem", f"Training would not start: {error}"))
    if "val" in data.splits:
        known = {p.key for p in found.pictures if p.split == "val"}
        found.held_out = set(data.splits["val"].keys) - known
        extra.append(findings.uncertainty(len(data.splits["val"])))
    if not facts.can_hash():
        text = "Near duplicates were not looked for: that needs the package imagehash."
        extra.append(Finding("no_near_duplicates", "note", text, "pip install 'finetune-lightning[inspect]'"))
    every = findings.ranked([*findings.find(found, data.final_preprocess, near), *extra])
    sizes = {name: len(split) for name, split in data.splits.items()}
    return Inspection(found, every, sizes, data.final_preprocess, time.perf_counter() - began)


# --- what is written ---------------------------------------------------------------------------------------------


def values(found: Inspection) -> dict[str, Any]:
    """As `check.json` holds them."""
    channels = findings.channels(found.survey)
    bad = {p.key: reason for p in found.survey.pictures if (reason := found.survey.facts[p.path].reason) is not None}
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
        "versions": machine.versions(),
    }


def write(found: Inspection, folder: Path, report: bool, command: Sequence[str]) -> None:
    """`check.json`, and `check.html` with thumbnails."""
    write_json(values(found), folder / "check.json")
    if report:
        pages.write(folder / "check.html", "check.html", **_page(found, shlex.join(command)))


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
        "versions": machine.versions(),
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
    channels = findings.channels(survey)
    if channels:
        mean, std = map(findings.three, channels)
        theirs = f"{findings.three(found.preprocess.mean)} and {findings.three(found.preprocess.std)}"
        pairs.append(("red/green/blue", f"mean {mean}, spread {std}; of the weights {theirs}"))
    return pairs


def _groups(survey: Survey, finding: Finding) -> tuple[list[list[Any]], int]:
    """Thumbnails of the first files, and how many more there are."""
    several = any(len(group) > 1 for group in finding.groups)
    shown = [group[:6] for group in finding.groups[: GROUPS if several else FILES]]
    thumbs: list[list[Any]] = []
    for group in shown:
        thumbs.append([])
        for key in group:
            path = survey.base / key
            reason = survey.facts.get(str(path), facts.Fact()).reason
            thumbs[-1].append((f"{key} {reason}" if reason else key, None if reason else pages.thumbnail(path, 160)))
    return thumbs, finding.files - sum(map(len, shown))


def _faces(survey: Survey) -> list[tuple[str, list[Any]]]:
    """Some pictures of each class, always the same."""
    drawn = []
    for name in list(survey.counts())[:FACED]:
        own = [p for p in survey.readable() if p.label == name]
        some = sorted(random.Random(0).sample(own, min(FACES, len(own))), key=lambda p: p.key)
        if some:
            drawn.append((name, [(p.key, pages.thumbnail(p.path, 160)) for p in some]))
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


def show(found: Inspection, folder: Path, report: bool) -> None:
    """The findings on the terminal, in words."""
    for name, text in _facts(found)[:1]:
        say(entry(name.capitalize(), f"{text}, at {found.survey.root}"))
    for finding in found.findings:
        say(entry(finding.level.capitalize(), f"{finding.says} {finding.do}".strip()))
        names = [_together(group) for group in finding.groups]
        for name in names[: 3 if finding.level != "note" else 1]:
            reason = found.survey.facts.get(str(found.survey.base / name), facts.Fact()).reason
            say(f"          {name}" + (f": {reason}" if reason else ""))
        more = len(names) - (3 if finding.level != "note" else 1)
        if more > 0:
            say(f"          and {more} more in check.json")
    say(entry("Verdict", f"{found.verdict}. {found.seconds:.1f} s; nothing was changed."))
    for name in ("check.html", "check.json") if report else ("check.json",):
        link("See" if name == "check.html" else "", folder / name)
