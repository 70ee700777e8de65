"""Write the page of a finished run."""

from __future__ import annotations

import os
import random
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from finetune.checkpoints.format import read_checkpoint
from finetune.checkpoints.metadata import CalibrationRecord
from finetune.data.datamodule import ImageDataModule
from finetune.data.splits import Split
from finetune.inference import eval_data
from finetune.inference.classifier import Classifier, load
from finetune.io.files import write_csv
from finetune.metrics import calibration, classification, statistics
from finetune.reporting import calibration_page, confusions, diagnostics, figures, html, saliency
from finetune.reporting.label_issues import LabelIssue, find_label_issues
from finetune.reporting.runs import Run, ValidationPredictions, read_run
from finetune.runtime.console import echo, field_line, short_path

SHOWN = 8
"""How many images each sheet shows."""

SHOWN_CLASSES = 200

TITLE = "Validation images, best epoch"
OUT_OF_FOLD_TITLE = "Training images, out of fold"

SUSPICIOUS = (
    "They were predicted without having been trained on, and another class has a higher probability than is usual for "
    "that class: the label may be wrong."
)


def write_report(run: Run, split: Split | None = None, data: ImageDataModule | None = None) -> str | None:
    """Write `report.html` and `suspicious_labels.csv`.

    Args:
        run: the contents of its folder.
        split: its validation images; None looks for them.
        data: says where to look for them; None looks where the checkpoint says that they are.

    Returns:
        Why the page has no images, or no saliency maps; None if it has both.

    Raises:
        ValueError: there is a page already, and the images for a new one are not to be found.
    """
    page = run.folder / "report.html"
    sheets: list[Any] = []
    note: str | None = "The predictions for the validation images were not kept."
    issues: list[LabelIssue] = []
    record = _calibration_record(run)
    if run.predictions is not None:
        issues = find_label_issues(run.predictions.probabilities, run.predictions.labels)
        try:
            model = load(run.best_checkpoint)
            if split is None:
                data = data or ImageDataModule()
                split = eval_data.find_eval_data(model.module.metadata.data, model.classes, "val", data).split
            sheets, note = _sheets(run, run.predictions, model, split, issues)
        except (OSError, ValueError) as error:
            note = f"Without images: {error}"
    _write_label_issues(run, issues)
    if not sheets and page.exists():
        raise ValueError(
            f"{run.folder}: the page that is there is left as it is; --root FOLDER says where its images are now. {note}"
        )
    html.write_page(page, "report.html", **_page(run, record), sheets=sheets, note=note)
    return note


def try_report(folder: Path, data: ImageDataModule) -> None:
    """Write `report.html` of a run that has just ended; a run is good without it, so that an error is a line."""
    try:
        write_report(read_run(folder), data.splits["val"] or data.splits["train"])
    except Exception as error:
        if os.environ.get("FINETUNE_DEBUG") == "1":
            raise
        text = f"could not be written ({type(error).__name__}: {error}); python -m finetune.report {folder} tries again"
        echo(field_line("Report", text))


def _write_label_issues(run: Run, issues: Sequence[LabelIssue]) -> None:
    classes, keys = run.metrics["classes"], run.predictions.keys if run.predictions is not None else []
    columns = ["path", "label", "suggested", "probability_of_label", "probability_of_suggested"]
    rows = [
        [
            keys[issue.position],
            classes[issue.label],
            classes[issue.suggested],
            f"{issue.label_probability:.4f}",
            f"{issue.suggested_probability:.4f}",
        ]
        for issue in issues
    ]
    write_csv(columns, rows, run.folder / "suspicious_labels.csv")


# --- numbers -----------------------------------------------------------------------------------------------------


def _calibration_record(run: Run) -> CalibrationRecord:
    """Return what the best checkpoint says of its calibration; nothing where it cannot be read."""
    try:
        return read_checkpoint(run.best_checkpoint).metadata.calibration
    except (OSError, ValueError):
        return CalibrationRecord()


def _page(run: Run, record: CalibrationRecord) -> dict[str, Any]:
    metrics, n = run.metrics, run.n_evaluated
    best, classes, matrix = metrics["best"], metrics["classes"], metrics["confusion_matrix"]
    low, high = statistics.wilson_interval(run.n_correct, n)
    title = OUT_OF_FOLD_TITLE if run.is_out_of_fold else TITLE
    sizes = [sum(row) for row in matrix] or [0] * len(classes)
    section = calibration_page.calibration_section(run.predictions, record)
    return {
        "title": f"{metrics['model']}, {metrics['strategy']}: {html.percent(run.acc)}",
        "run": run,
        "metrics": metrics,
        "interval": f"{100 * low:.1f}-{html.percent(high)}",
        "majority": (classes[sizes.index(max(sizes))], max(sizes) / n) if any(sizes) else None,
        "properties": _properties(run),
        "findings": diagnostics.diagnose_run(metrics, run.rows, n, section.get("calibration")),
        "curves": [html.svg(f, "curves over the epochs") for f in figures.curve_figures(run.rows, best["epoch"])],
        "matrix": html.svg(confusions.matrix_figure(matrix, classes, title), "confusion matrix") if matrix else None,
        "confusions": _confusions(matrix, classes),
        "per_class": _per_class(matrix, classes),
        **section,
        "commands": _commands(run),
        "versions": metrics["versions"],
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }


def _properties(run: Run) -> list[tuple[str, str]]:
    """Describe the run: name -> text."""
    m, seconds = run.metrics, run.metrics["seconds"]
    sizes = ", ".join(f"{m[f'n_{name}']:,} {name}" for name in ("train", "val", "test") if m[f"n_{name}"])
    epochs = sorted(row["seconds"] for row in run.rows if "seconds" in row)
    median = f", {epochs[len(epochs) // 2]:.1f} s an epoch" if epochs else ""
    known = ("val/acc", "val/loss", "val/f1", "val/auroc")
    further = {key: value for key, value in m["best"].items() if key.startswith("val/") and key not in known}
    texts = ", ".join(f"{key.removeprefix('val/')} {value:.4f}" for key, value in further.items())
    return [
        ("data", f"{short_path(m['data'])}: {sizes} images of {len(m['classes'])} classes"),
        ("model", f"{m['model']}; weights: {m['weights']}"),
        ("trainable", f"{m['strategy']}: {m['trainable_parameters']:,} of {m['total_parameters']:,} parameters"),
        *(
            []
            if run.is_out_of_fold
            else [("best epoch", f"{m['best']['epoch']} of {len(run.rows)}, by {m['monitor']}")]
        ),
        *([("further metrics", f"{texts} (validation, best epoch)")] if texts else []),
        ("time", f"{seconds['total']:.0f} s, of which training {seconds.get('fit', 0):.0f} s{median}"),
        ("device", m["device"]),
    ]


def _per_class(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple[str, dict[str, Any], str]]:
    """Return name, metrics and interval of the recall of each class, the lowest F1 first."""
    if not matrix:
        return []
    rows = sorted(classification.per_class_metrics(matrix, classes).items(), key=lambda item: item[1]["f1"] or 0)
    return [(name, row, _recall_interval(row)) for name, row in rows[:SHOWN_CLASSES]]


def _recall_interval(row: dict[str, Any]) -> str:
    if not row["images"]:
        return "-"
    low, high = statistics.wilson_interval(round(row["recall"] * row["images"]), row["images"])
    return f"{html.percent(low, 0)} to {html.percent(high, 0)}"


def _confusions(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes: true class, predicted class, count."""
    pairs = [(classes[i], classes[j], n) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n]
    return sorted(pairs, key=lambda pair: -pair[2])[:10]


def _commands(run: Run) -> dict[str, str]:
    ckpt = shlex.quote(f"ckpt={short_path(run.folder.absolute())}")
    return {
        "Predict the classes of other images": f"python -m finetune.predict {ckpt} source=IMAGES",
        "Evaluate on other images": f"python -m finetune.evaluate {ckpt} data.root=FOLDER",
        "Export for other programs (ONNX)": f"python -m finetune.export {ckpt} format=onnx",
        "Repeat this run": run.metrics["command"],
    }


# --- images ------------------------------------------------------------------------------------------------------


def _sheets(
    run: Run, predictions: ValidationPredictions, model: Classifier, split: Split, issues: Sequence[LabelIssue]
) -> tuple[list[Any], str | None]:
    """Return sheets of mistakes, suspicious labels, the least certain and random images, and why maps are missing."""
    confidence = torch.from_numpy(_at_temperature(predictions, model).probabilities).amax(dim=1)
    chosen = _choose_images(predictions, confidence, issues)
    wanted = sorted({i for _, _, positions in chosen for i in positions})
    cards, note = image_cards(run, predictions, model, split, wanted)
    return [(title, text, [cards[i] for i in positions]) for title, text, positions in chosen if positions], note


def image_cards(
    run: Run, predictions: ValidationPredictions, model: Classifier, split: Split, wanted: Sequence[int]
) -> tuple[dict[int, Any], str | None]:
    """Return what the macro `card` shows of validation images, by position, and why saliency maps are missing.

    Args:
        run: the contents of its folder.
        predictions: of the run, N.
        model: of its best checkpoint.
        split: its validation images, in any order.
        wanted: positions among the N predictions.

    Raises:
        ValueError: the split is another one.
    """
    position_in_split = {key: i for i, key in enumerate(split.keys)}
    if not position_in_split.keys() >= set(predictions.keys):
        raise ValueError("the validation images are others than those of the run.")
    predictions = _at_temperature(predictions, model)
    predicted = torch.from_numpy(predictions.probabilities).argmax(dim=1)
    positions = [position_in_split[predictions.keys[i]] for i in wanted]
    images = torch.cat([batch for batch, _ in model.batches(split, positions=positions)])
    maps, note = _saliency_maps(model, images, predicted[list(wanted)])
    return {
        i: _card(run, predictions, i, images[k], None if maps is None else maps[k]) for k, i in enumerate(wanted)
    }, note


def _at_temperature(predictions: ValidationPredictions, model: Classifier) -> ValidationPredictions:
    """Return predictions of a run with the probabilities that `predict` gives."""
    probabilities = torch.from_numpy(predictions.probabilities)
    scaled = calibration.scale_probabilities(probabilities, model.temperature)
    return predictions._replace(probabilities=scaled.numpy())


def _choose_images(
    predictions: ValidationPredictions, confidence: Tensor, issues: Sequence[LabelIssue]
) -> list[tuple[str, str, list[int]]]:
    """Return title, text and positions of the images of each sheet."""
    n = len(predictions.labels)
    wrong = torch.from_numpy(~predictions.correct).nonzero()[:, 0]
    most_certain_first = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    at_random = sorted(random.Random(0).sample(range(n), min(SHOWN, n)))
    return [
        ("Worst mistakes", f"Wrong with the highest confidence. {len(wrong)} of {n} are wrong.", most_certain_first[:SHOWN].tolist()),
        ("Suspicious labels", f"{SUSPICIOUS} suspicious_labels.csv has all {len(issues)}.", [issue.position for issue in issues[:SHOWN]]),
        ("Least certain", "Predicted with the lowest confidence, correctly or not.", confidence.argsort(stable=True)[:SHOWN].tolist()),
        ("Random examples", "Drawn from all of them.", at_random),
    ]  # fmt: skip


def _saliency_maps(model: Classifier, images: Tensor, classes: Tensor) -> tuple[Tensor | None, str | None]:
    """Return maps of where the network looked, (N, H, W), or why there are none."""
    if not saliency.available():
        return (
            None,
            "Where the network looked is shown with the package captum: pip install 'finetune-lightning[inspect]'",
        )
    try:
        maps = saliency.gradcam(model.module, images, classes)
    except Exception as error:  # the page is good without
        return None, f"Where the network looked could not be computed ({type(error).__name__}: {error})."
    return maps, None if maps is not None else "This kind of network has no maps that show where it looked."


def _card(
    run: Run, predictions: ValidationPredictions, i: int, image: Tensor, saliency_map: Tensor | None
) -> dict[str, Any]:
    classes, row = run.metrics["classes"], predictions.probabilities[i]
    thumbnails = []
    for pixels in [image] if saliency_map is None else [image, saliency.overlay(image, saliency_map)]:
        small = to_pil_image(pixels)
        small.thumbnail((html.SIDE, html.SIDE))
        thumbnails.append(html.inline_image(small, predictions.keys[i]))
    return {
        "key": predictions.keys[i],
        "images": thumbnails,
        "true": classes[predictions.labels[i]],
        "correct": bool(predictions.correct[i]),
        "predictions": [(classes[j], float(row[j])) for j in row.argsort(kind="stable")[::-1][:3]],
    }
