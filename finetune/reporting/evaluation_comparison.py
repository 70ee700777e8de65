"""Print, write and draw the comparison of several evaluations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.reporting.evaluations import KINDS, Evaluation, compare_evaluations
from finetune.runtime.console import echo, echo_link, field_line, print_table

CARDS = 24
"""How many changed images of a kind the page shows, those first of which the second model is surest."""

TITLES = {"lost": "Right before, wrong now", "gained": "Wrong before, right now", "other": "Wrong in another way"}


def write_evaluation_comparison(evaluations: Sequence[Evaluation], folder: Path) -> None:
    """Print the comparison with the first, and write `evaluations.csv`, `changed.csv` and `compare.html`.

    Args:
        evaluations: as `read_evaluation` returns them; two or more.
        folder: for the files.

    Raises:
        ValueError: they are of different images.
    """
    compare_evaluations(evaluations)
    first = evaluations[0]
    rows = [
        [e.label, f"{e.acc:.4f}", f"{e.interval[0]:.4f} to {e.interval[1]:.4f}", f"{e.n_correct}/{len(e.images)}", e.folder.name]
        for e in evaluations
    ]  # fmt: skip
    print_table(
        f"Accuracy on the same {len(first.images)} images", ["model", "acc", "95 % interval", "correct", "folder"], rows
    )
    for e in evaluations[1:]:
        echo(f"{e.label}, against {first.label}:\n{field_line('', e.description)}")
    for note in _notes(evaluations):
        echo(field_line("Note", note))
    _write_tables(evaluations, folder)
    _write_page(evaluations, folder / "compare.html")
    echo_link("See", folder / "compare.html")
    echo_link("", folder / "changed.csv")
    echo_link("", folder / "evaluations.csv")


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return what keeps the accuracies from being compared, in sentences."""
    notes = []
    for e in evaluations:
        if e.values.get("trained_on"):
            notes.append(
                f"{e.label} was trained on {e.values['trained_on']} of these images, so its accuracy is too good."
            )
        if e.values.get("near_duplicates"):
            notes.append(
                f"{e.values['near_duplicates']} of these images look like images that {e.label} was trained on."
            )
    roots = {str(e.values["root"]) for e in evaluations if e.values.get("root")}
    if len(roots) > 1:
        notes.append(
            f"The images lay in different folders, with the same names and labels: {', '.join(sorted(roots))}."
        )
    return notes


def _write_tables(evaluations: Sequence[Evaluation], folder: Path) -> None:
    from finetune.io.files import write_csv

    numbers = ("f1", "loss", "ece")
    columns = ["model", "acc", "low", "high", "correct", "images", *KINDS, "p", *numbers, "ckpt", "folder"]
    rows: list[list[Any]] = [
        [
            e.label, *(f"{share:.6f}" for share in (e.acc, *e.interval)), e.n_correct, len(e.images),
            *(e.count(kind) if e.test else "" for kind in KINDS), f"{e.test.p:.4g}" if e.test else "",
            *(e.values.get(name, "") for name in numbers), e.checkpoint, e.folder,
        ]
        for e in evaluations
    ]  # fmt: skip
    write_csv(columns, rows, folder / "evaluations.csv")
    names = [
        "path",
        "change",
        "true",
        "before",
        "confidence_before",
        "after",
        "confidence_after",
        "model_before",
        "model_after",
    ]
    changes = [
        [
            c.path, KINDS[c.kind], c.before.true, c.before.label, c.before.confidence, c.after.label, c.after.confidence,
            evaluations[0].label, e.label,
        ]
        for e in evaluations
        for c in e.changes
    ]  # fmt: skip
    write_csv(names, changes, folder / "changed.csv")


def _write_page(evaluations: Sequence[Evaluation], path: Path) -> None:
    from finetune.reporting import html
    from finetune.runtime import hardware

    first = evaluations[0]
    galleries = []
    for e in evaluations[1:]:
        groups = []
        for kind, title in TITLES.items():
            changes = [c for c in e.changes if c.kind == kind]
            cards = [(c, (file := first.file(c.path)) and html.thumbnail(file)) for c in changes[:CARDS]]
            groups.append((title, cards, len(changes)))
        galleries.append((e, groups))
    html.write_page(
        path,
        "evaluations.html",
        title=f"{len(evaluations)} models on the same images",
        evaluations=evaluations,
        first=first,
        galleries=galleries,
        notes=_notes(evaluations),
        versions=hardware.installed_versions(),
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
