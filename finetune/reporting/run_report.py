"""Write the page of a finished run."""

from __future__ import annotations

import random
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.datamodule import ImageDataModule
from finetune.data.splits import Split
from finetune.inference.classifier import Classifier
from finetune.reporting.runs import Run, ValidationPredictions

SHOWN = 8
"""Pictures of each kind."""

SHOWN_CLASSES = 200

SUSPICIOUS = (
    "The model has not learned these pictures, and takes them for another class more surely than is usual for that class: "
    "the label may be wrong."
)


def write_report(run: Run, split: Split | None = None, root: Path | None = None) -> str | None:
    """`report.html` and `suspicious_labels.csv`.

    Args:
        run: its files.
        split: its validation images; None looks for them where the checkpoint says that they are.
        root: where they are now, if they were moved.

    Returns:
        Why the page has no pictures, or none of where the network looked.

    Raises:
        ValueError: there is a page already, and the pictures for a new one are not to be found.
    """
    from finetune.inference import eval_data
    from finetune.inference.classifier import load
    from finetune.io.files import write_csv
    from finetune.reporting import html, label_issues

    pictures: dict[str, Any] = {"sheets": [], "note": "The checkpoint has no list of what it said of each picture."}
    found: list[Any] = []
    if run.answers is not None:
        found = label_issues.find_label_issues(run.answers.probabilities, run.answers.labels)
        try:
            model = load(run.best)
            split = (
                split
                or eval_data.find_eval_data(model.module.about, model.classes, "val", _data(run, model, root)).split
            )
            pictures = _pictures(run, run.answers, model, split, found)
        except (OSError, ValueError) as error:
            pictures["note"] = f"Without pictures: {error}"
    classes = run.metrics["classes"]
    keys = run.answers.keys if run.answers is not None else []
    rows = [[keys[s.position], classes[s.label], classes[s.suggested], f"{s.own:.4f}", f"{s.other:.4f}"] for s in found]
    columns = ["path", "label", "suggested", "probability_of_label", "probability_of_suggested"]
    write_csv(columns, rows, run.folder / "suspicious_labels.csv")
    if not pictures["sheets"] and (run.folder / "report.html").exists():
        raise ValueError(
            f"{run.folder}: the page that is there is left as it is; --root FOLDER says where its pictures are now. "
            f"{pictures['note']}"
        )
    html.write_page(run.folder / "report.html", "report.html", **_page(run), **pictures, suspects=len(found))
    return pictures["note"]


def _data(run: Run, model: Classifier, root: Path | None) -> ImageDataModule:
    """Where to look for a run's images."""
    from omegaconf import OmegaConf

    from finetune.cli import factories
    from finetune.data.datamodule import ImageDataModule

    stored = model.module.about.get("data") or {}
    if root is None and not stored.get("dataset"):
        return ImageDataModule()  # where the checkpoint says
    cfg: Any = OmegaConf.create(run.config)
    found = root or stored.get("root")
    cfg.data.root = str(found) if found is not None else None
    return ImageDataModule(**factories.data_options(cfg))


# --- numbers -----------------------------------------------------------------------------------------------------


def _page(run: Run) -> dict[str, Any]:
    import torch

    from finetune.metrics import calibration, classification, statistics
    from finetune.reporting import diagnostics, figures, html

    metrics, n = run.metrics, run.judged
    best, classes, matrix = metrics["best"], metrics["classes"], metrics["confusion_matrix"]
    right = round(best["val/acc"] * n)
    low, high = statistics.wilson_interval(right, n)
    sizes = [sum(row) for row in matrix] or [0] * len(classes)
    calibrated, bins = None, []
    if run.answers is not None:
        probabilities, labels = map(torch.from_numpy, run.answers[:2])
        logits = probabilities.double().clamp_min(1e-38).log()
        calibrated, bins = calibration.calibration(logits, labels), calibration.reliability(logits, labels)
    per_class = classification.per_class_metrics(matrix, classes) if matrix else {}
    title = f"{metrics['model']}, {metrics['strategy']}: {html.percent(best['val/acc'])}"
    return {
        "title": title,
        "run": run,
        "metrics": metrics,
        "right": right,
        "n": n,
        "interval": f"{100 * low:.1f}-{html.percent(high)}",
        "majority": (classes[sizes.index(max(sizes))], max(sizes) / n) if any(sizes) else None,
        "facts": _facts(run),
        "findings": diagnostics.diagnose_run(metrics, run.rows, n, calibrated),
        "curves": [html.svg(f, "curves over the epochs") for f in figures.curve_figures(run.rows, best["epoch"])],
        "matrix": html.svg(figures.matrix_figure(matrix, classes, "Validation images, best epoch"), "confusion matrix") if matrix else None,
        "confused": _confused(matrix, classes),
        "per_class": [(name, row, _interval(row)) for name, row in sorted(per_class.items(), key=lambda item: item[1]["f1"] or 0)][:SHOWN_CLASSES],
        "calibration": calibrated,
        "reliability": html.svg(figures.reliability_figure(bins), "calibration") if bins else None,
        "commands": _commands(run),
        "versions": metrics["versions"],
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip


def _facts(run: Run) -> list[tuple[str, str]]:
    m, seconds = run.metrics, run.metrics["seconds"]
    sizes = ", ".join(f"{m[f'n_{name}']:,} {name}" for name in ("train", "val", "test") if m[f"n_{name}"])
    each = [row["seconds"] for row in run.rows if "seconds" in row]
    epoch = f", {sorted(each)[len(each) // 2]:.1f} s an epoch" if each else ""
    return [
        ("data", f"{m['data']}: {sizes} pictures of {len(m['classes'])} classes"),
        ("model", f"{m['model']}; weights: {m['weights']}"),
        ("what learned", f"{m['strategy']}: {m['trainable_parameters']:,} of {m['total_parameters']:,} parameters"),
        ("best epoch", f"{m['best']['epoch'] + 1} of {len(run.rows)}, by {m['monitor']}"),
        ("time", f"{seconds['total']:.0f} s, of which training {seconds.get('fit', 0):.0f} s{epoch}"),
        ("device", m["device"]),
    ]


def _interval(row: dict[str, Any]) -> str:
    from finetune.metrics import statistics
    from finetune.reporting import html

    if not row["images"]:
        return "-"
    low, high = statistics.wilson_interval(round(row["recall"] * row["images"]), row["images"])
    return f"{html.percent(low, 0)} to {html.percent(high, 0)}"


def _confused(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: truth, answer, how many."""
    pairs = [(classes[i], classes[j], n) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n]
    return sorted(pairs, key=lambda pair: -pair[2])[:10]


def _commands(run: Run) -> dict[str, str]:
    folder = shlex.quote(f"ckpt={run.folder.absolute()}")
    again = run.metrics["command"]
    return {
        "What it says of pictures": f"python -m finetune.predict {folder} source=PICTURES",
        "What it is worth on others": f"python -m finetune.evaluate {folder} data.root=FOLDER",
        "For other programs (ONNX)": f"python -m finetune.export {folder} format=onnx",
        "This run again": again,
    }


# --- pictures ----------------------------------------------------------------------------------------------------


def _pictures(
    run: Run, answers: ValidationPredictions, model: Classifier, split: Split, found: Sequence[Any]
) -> dict[str, Any]:
    """The sheets: mistakes, suspects, the least certain, and some at random."""
    import torch

    probabilities, labels = map(torch.from_numpy, answers[:2])
    place = {key: i for i, key in enumerate(split.keys)}
    if not place.keys() >= set(answers.keys):
        raise ValueError("the validation images are others than those of the run.")
    confidence, said = probabilities.max(dim=1)
    wrong = (said != labels).nonzero()[:, 0]
    n = len(labels)
    kinds = {
        ("The worst mistakes", f"Wrong, and certain of it. {len(wrong)} of {n} are wrong."):
            wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN].tolist(),
        ("Labels to look at", f"{SUSPICIOUS} suspicious_labels.csv has all {len(found)}."): [s.position for s in found[:SHOWN]],
        ("The least certain", "Where it hesitates, right or wrong."): confidence.argsort(stable=True)[:SHOWN].tolist(),
        ("Some at random", "Whatever they are."): sorted(random.Random(0).sample(range(n), min(SHOWN, n))),
    }  # fmt: skip
    wanted = sorted({i for positions in kinds.values() for i in positions})
    images = torch.stack([model.transform(split.load(place[answers.keys[i]])) for i in wanted])
    heat, note = _maps(model, images, said[wanted])
    cards = {i: _card(run, answers, i, images[k], None if heat is None else heat[k]) for k, i in enumerate(wanted)}
    sheets = [(title, text, [cards[i] for i in chosen]) for (title, text), chosen in kinds.items() if chosen]
    return {"sheets": sheets, "note": note}


def _maps(model: Classifier, images: Any, classes: Any) -> tuple[Any, str | None]:
    """Where the network looked, or why that is not shown."""
    from finetune.reporting import saliency

    if not saliency.available():
        return (
            None,
            "Where the network looked is shown with the package captum: pip install 'finetune-lightning[inspect]'",
        )
    try:
        heat = saliency.gradcam(model, images, classes)
    except Exception as error:  # the page is good without
        return None, f"Where the network looked could not be computed ({type(error).__name__}: {error})."
    return heat, None if heat is not None else "This kind of network has no maps to show where it looked."


def _card(run: Run, answers: ValidationPredictions, i: int, image: Any, heat: Any) -> dict[str, Any]:
    from torchvision.transforms.v2.functional import to_pil_image

    from finetune.reporting import html, saliency

    classes, row = run.metrics["classes"], answers.probabilities[i]
    shown = [image] if heat is None else [image, saliency.overlay(image, heat)]
    thumbs = []
    for tensor in shown:
        small = to_pil_image(tensor)
        small.thumbnail((html.SIDE, html.SIDE))
        thumbs.append(html.inline_image(small, answers.keys[i]))
    return {
        "key": answers.keys[i],
        "images": thumbs,
        "true": classes[answers.labels[i]],
        "right": bool(answers.right[i]),
        "answers": [(classes[j], float(row[j])) for j in row.argsort(kind="stable")[::-1][:3]],
    }
