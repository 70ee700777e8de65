"""Diagnose a finished run: reasons to doubt its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from finetune.inspection import checks
from finetune.inspection.finding import Finding, count_of, list_names
from finetune.metrics import statistics

GAP = 0.05
"""Training accuracy minus validation accuracy, above which a run may be overfitted."""

CALIBRATED = 0.05
"""Expected calibration error up to which a model counts as calibrated."""


def diagnose_run(
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    n_evaluated: int,
    calibration: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Return every doubt about a finished run, the most severe first.

    Args:
        metrics: as `metrics.json` holds them.
        rows: as `metrics.csv` holds them, epochs from 1.
        n_evaluated: number of validation images that were evaluated.
        calibration: see `calibration.calibration`; `applied` is the temperature of the checkpoint, where it was fitted.
    """
    best, matrix, classes = metrics["best"], metrics["confusion_matrix"], metrics["classes"]
    return checks.by_severity(
        [
            *map(Finding.from_dict, metrics["findings"]),
            checks.validation_uncertainty(n_evaluated),
            *_chance(matrix, classes),
            *_overfitting(best, n_evaluated),
            *_convergence(rows),
            *_weak_classes(matrix, classes, best["val/acc"]),
            *_selection(metrics, rows, n_evaluated),
            *_missing_images(metrics, n_evaluated),
            *_calibration(calibration),
        ]
    )


def _chance(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Iterator[Finding]:
    sizes = [sum(row) for row in matrix]
    n, n_correct = sum(sizes), sum(matrix[i][i] for i in range(len(matrix)))
    several = sum(size > 0 for size in sizes) > 1
    if n >= checks.FEW_EVALUATED and several and statistics.wilson_interval(n_correct, n)[0] <= max(sizes) / n:
        name = classes[sizes.index(max(sizes))]
        yield Finding(
            "no_better_than_chance", "problem",
            f"Always predicting {name} would be correct for {max(sizes) / n:.1%}: this model is not clearly better.",
            "Is the learning rate suitable, were the pretrained weights loaded, do the labels fit the images?",
        )  # fmt: skip


def _overfitting(best: Mapping[str, Any], n_evaluated: int) -> Iterator[Finding]:
    train_acc, val_acc = best.get("train/acc", 0), best["val/acc"]
    highest = statistics.wilson_interval(round(val_acc * n_evaluated), n_evaluated)[1]
    if train_acc > max(val_acc + GAP, highest):
        yield Finding(
            "overfitting", "warning",
            f"The accuracy on training images is higher than on new ones: {train_acc:.1%} against {val_acc:.1%}.",
            "More images help most; then data.augment=basic or trivial, fewer trainable layers (strategy), optimizer.weight_decay.",
        )  # fmt: skip


def _convergence(rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield findings on a training that ended too early, or went on for too long."""
    losses = [(row["epoch"], row["val/loss"]) for row in rows if "val/loss" in row]
    if len(losses) < 2:
        return
    quarter = max(1, len(losses) // 4)
    last, previous = losses[-quarter:], losses[-2 * quarter : -quarter]
    last_mean, previous_mean = (sum(loss for _, loss in part) / quarter for part in (last, previous))
    best_epoch, lowest = min(losses, key=lambda pair: pair[1])
    best_is_late = best_epoch in [epoch for epoch, _ in last]
    if last_mean < 0.98 * previous_mean and best_is_late:
        yield Finding(
            "not_converged", "warning",
            f"It was still improving when it ended: the validation loss, in means of {count_of(quarter, 'epoch')}, "
            f"fell from {previous_mean:.3f} to {last_mean:.3f} at the end.",
            f"Try trainer.max_epochs={2 * int(rows[-1]['epoch'])}, or a larger optimizer.lr.",
        )  # fmt: skip
    if last_mean > 1.2 * lowest and not best_is_late:
        yield Finding(
            "too_long", "note",
            f"The validation loss was lowest in epoch {best_epoch} ({lowest:.3f}) and rose to {last_mean:.3f} after it.",
            "best.ckpt is not affected. +callbacks=early_stopping saves the time.",
        )  # fmt: skip


def _weak_classes(matrix: Sequence[Sequence[int]], classes: Sequence[str], acc: float) -> Iterator[Finding]:
    """Yield a finding on classes whose recall is clearly below the accuracy."""
    z = NormalDist().inv_cdf(1 - 0.025 / len(classes))  # of so many classes some are below by chance
    weak = []
    for i, name in enumerate(classes):
        n = sum(matrix[i])
        if n >= checks.FEW and statistics.wilson_interval(matrix[i][i], n, z)[1] < acc:
            weak.append(f"{name} ({matrix[i][i]} of {n} correct)")
    if weak:
        yield Finding(
            "weak_classes", "warning", f"Clearly below the others: {list_names(weak, 5)}.",
            "Look at what they are predicted as and at their labels, and collect more images of them.",
        )  # fmt: skip


def _selection(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], n_evaluated: int) -> Iterator[Finding]:
    epochs = sum(any(key.startswith("val/") for key in row) for row in rows)
    if epochs > 1 and (size := _optimism(metrics, n_evaluated)):
        yield Finding(
            "chosen_on_val", "note",
            f"The best of {epochs} epochs was chosen on the images that give this number, which makes it {size}.",
            "A test folder beside train and val gives a number that nothing was chosen by." if not metrics["test"] else "The number of the test images is free of that.",
        )  # fmt: skip


def _optimism(metrics: Mapping[str, Any], n_evaluated: int) -> str:
    """Return how much the choice of the best epoch is worth; nothing where that is not known and there is a test split."""
    optimism = metrics.get("best_epoch_optimism")
    if optimism is None:
        return "" if metrics["test"] else "a little too high"
    if 100 * optimism < 0.05:
        return "less than 0.1 points too high in the mean (bootstrap)"
    images = f"{optimism * n_evaluated:.1f} of {n_evaluated:,} images"
    return f"about {100 * optimism:.1f} points too high in the mean ({images}; bootstrap)"


def _missing_images(metrics: Mapping[str, Any], n_evaluated: int) -> Iterator[Finding]:
    if metrics.get("bad_files"):
        text = f"{count_of(metrics['bad_files'], 'file')} could not be read and were left out."
        yield Finding("unreadable", "warning", text, "bad_files.csv lists them.")
    if n_evaluated < metrics.get("n_val", n_evaluated):
        text = f"Only {n_evaluated} of the {metrics['n_val']} validation images were evaluated (trainer.limit_val_batches)."
        yield Finding("some_batches", "warning", text, "The numbers are good for a test of the set-up alone.")


def _calibration(calibration: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Yield a finding on confidences that temperature scaling would improve."""
    if calibration is None or calibration["ece_scaled"] is None or calibration["ece"] <= CALIBRATED:
        return
    ece, scaled, temperature = (calibration[key] for key in ("ece", "ece_scaled", "temperature"))
    temperature = calibration.get("applied") or temperature
    if scaled < 0.8 * ece and 0.2 < temperature < 5:
        direction = "over" if temperature > 1 else "under"
        advice = f"temperature={temperature:.2f} in predict brings that to {scaled:.1%}."
        if (applied := calibration.get("applied")) is not None:
            advice = f"predict and evaluate divide the logits by {applied:.2f}, which brings that to {scaled:.1%}."
        yield Finding(
            "calibration", "note",
            f"The model is {direction}confident: its confidence differs from its accuracy by {ece:.1%} in the mean (ECE).",
            advice,
        )  # fmt: skip
