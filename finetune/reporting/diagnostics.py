"""What a person should know of a result before believing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from finetune.inspection import checks
from finetune.inspection.finding import Finding, count_of, list_names
from finetune.metrics import statistics

GAP = 0.05
"""Training accuracy over validation accuracy."""

CALIBRATED = 0.05
"""Expected calibration error."""


def diagnose_run(
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    judged: int,
    calibration: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Every doubt about a finished run, the gravest first.

    Args:
        metrics: as `metrics.json` holds them.
        rows: as `metrics.csv` holds them.
        judged: validation images that were looked at.
        calibration: see `scores.calibration`.
    """
    stored = [Finding(**{k: v for k, v in f.items() if k != "files"}) for f in metrics.get("findings", [])]
    best, matrix = metrics["best"], metrics["confusion_matrix"]
    every = [
        *stored,
        checks.validation_uncertainty(judged),
        *_chance(matrix, metrics["classes"]),
        *_fit(best, rows, judged),
    ]
    every += [*_weak(matrix, metrics["classes"], best["val/acc"]), *_chosen(metrics, rows)]
    if metrics.get("bad_files"):
        text = f"{count_of(metrics['bad_files'], 'file')} could not be read and were left out."
        every.append(Finding("unreadable", "warning", text, "bad_files.csv lists them."))
    if judged < metrics.get("n_val", judged):
        text = (
            f"Only {judged} of the {metrics['n_val']} validation pictures were looked at (trainer.limit_val_batches)."
        )
        every.append(Finding("some_batches", "warning", text, "The numbers are good for a test of the set-up alone."))
    scaled = calibration["ece_scaled"] if calibration else None
    if (
        calibration
        and calibration["ece"] > CALIBRATED
        and scaled is not None
        and scaled < 0.8 * calibration["ece"]
        and 0.2 < calibration["temperature"] < 5
    ):
        how = "more" if calibration["temperature"] > 1 else "less"
        text = f"The model is {how} certain than it is right: by {calibration['ece']:.1%} in the mean (ECE)."
        do = f"temperature={calibration['temperature']:.2f} in predict brings that to {scaled:.1%}."
        every.append(Finding("calibration", "note", text, do))
    return checks.by_severity(every)


def _chance(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Iterator[Finding]:
    sizes = [sum(row) for row in matrix]
    n, right = sum(sizes), sum(matrix[i][i] for i in range(len(matrix)))
    several = sum(size > 0 for size in sizes) > 1
    if n >= checks.FEW_EVALUATED and several and statistics.wilson_interval(right, n)[0] <= max(sizes) / n:
        name = classes[sizes.index(max(sizes))]
        yield Finding(
            "no_better_than_chance", "problem",
            f"Always saying {name} would be right for {max(sizes) / n:.1%}: this model is not clearly better.",
            "Is the rate right, were the pretrained weights taken, do the labels fit the pictures?",
        )  # fmt: skip


def _fit(best: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], judged: int) -> Iterator[Finding]:
    """Learned by heart, or not learned out."""
    learned, highest = best.get("train/acc", 0), statistics.wilson_interval(round(best["val/acc"] * judged), judged)[1]
    if learned > max(best["val/acc"] + GAP, highest):
        yield Finding(
            "overfitting", "warning",
            f"The training pictures are told apart better than new ones: {best['train/acc']:.1%} against {best['val/acc']:.1%}.",
            "More pictures help most; then data.augment=basic or trivial, fewer learning layers (strategy), optimizer.weight_decay.",
        )  # fmt: skip
    losses = [(row["epoch"], row["val/loss"]) for row in rows if "val/loss" in row]
    if len(losses) < 2:
        return
    quarter = max(1, len(losses) // 4)
    late, before = (sum(x for _, x in part) / quarter for part in (losses[-quarter:], losses[-2 * quarter : -quarter]))
    lowest, least = min(losses, key=lambda pair: pair[1])
    lately = lowest in [epoch for epoch, _ in losses[-quarter:]]
    if late < 0.98 * before and lately:
        yield Finding(
            "not_converged", "warning",
            f"It was still getting better when it ended: the validation loss, in means of {count_of(quarter, 'epoch')}, "
            f"fell from {before:.3f} to {late:.3f} at the end.",
            f"Try trainer.max_epochs={2 * (int(rows[-1]['epoch']) + 1)}, or a larger optimizer.lr.",
        )  # fmt: skip
    if late > 1.2 * least and not lately:
        yield Finding(
            "too_long", "note",
            f"The validation loss was lowest in epoch {lowest + 1} ({least:.3f}) and rose to {late:.3f} after it.",
            "best.ckpt is not hurt by it. +callbacks=early_stopping saves the time.",
        )  # fmt: skip


def _weak(matrix: Sequence[Sequence[int]], classes: Sequence[str], acc: float) -> Iterator[Finding]:
    """Classes that are clearly below the rest."""
    z = NormalDist().inv_cdf(1 - 0.025 / len(classes))  # of so many classes some are below by chance
    weak = []
    for i, name in enumerate(classes):
        n = sum(matrix[i])
        if n >= checks.FEW and statistics.wilson_interval(matrix[i][i], n, z)[1] < acc:
            weak.append(f"{name} ({matrix[i][i]} of {n} found)")
    if weak:
        yield Finding(
            "weak_classes", "warning", f"Clearly below the others: {list_names(weak, 5)}.",
            "Look at what they are taken for, at their labels, and for more pictures of them.",
        )  # fmt: skip


def _chosen(metrics: Mapping[str, Any], rows: Sequence[Any]) -> Iterator[Finding]:
    if not metrics["test"] and len(rows) > 1:
        yield Finding(
            "chosen_on_val", "note",
            f"The best of {len(rows)} epochs was chosen on the pictures that give this number, which makes it a little too good.",
            "A test folder beside train and val gives a number that nothing was chosen by.",
        )  # fmt: skip
