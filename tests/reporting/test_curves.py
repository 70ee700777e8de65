"""Test `finetune.reporting.curves`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune import plot_curves
from finetune.training.history import History

PNG = b"\x89PNG\r\n\x1a\n"


def write_run(
    folder: Path, accuracies: list[float], model: str = "resnet18", lr: float = 0.1, monitor: str = "val/acc"
) -> Path:
    """What `plot_curves` reads of a run, by hand."""
    folder.mkdir(parents=True)
    lines = [f"{i},{1 / i},{acc}" for i, acc in enumerate(accuracies, start=1)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,train/loss,val/acc", *lines]))
    metrics = {
        "best": {monitor: max(accuracies)}, "strategy": "finetune", "seconds": {"total": 1}, "confusion_matrix": [],
        "per_class_recall": {},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "split.csv").write_text("path,split\na.png,val\n")
    (folder / "config.yaml").write_text(f"model: {{name: {model}}}\noptimizer: {{lr: {lr}}}\n")
    return folder


def lines_of(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def names_of(figure: Any) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_curves_are_those_of_the_tables_and_the_legend_says_how_runs_differ(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [0.5, 0.75, 0.7])
    b = write_run(tmp_path / "b", [0.25, 1.0], lr=0.01)
    figure = plot_curves([a, str(b)], metrics=["train/loss", "val/acc"])
    loss, acc = figure.axes
    assert (loss.get_title(loc="left"), acc.get_title(loc="left")) == ("train/loss", "val/acc")
    assert lines_of(acc) == [([1, 2, 3], [0.5, 0.75, 0.7]), ([1, 2], [0.25, 1.0])]
    assert lines_of(loss) == [([1, 2, 3], [1, 1 / 2, 1 / 3]), ([1, 2], [1, 1 / 2])]
    assert names_of(figure) == ["lr=0.1", "lr=0.01"]
    assert figure._repr_png_().startswith(PNG)  # type: ignore[attr-defined]


def test_a_sweep_is_its_runs_and_no_run_is_drawn_twice(tmp_path: Path) -> None:
    for name, model in (("0", "resnet18"), ("1", "resnet34")):
        write_run(tmp_path / "sweep" / name, [0.5], model)
    figure = plot_curves([tmp_path / "sweep", tmp_path / "sweep" / "1"], metrics="val/acc")
    assert names_of(figure) == ["model=resnet18", "model=resnet34"]


def test_rows_of_a_history_are_named_by_their_place(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.csv", "val/acc")
    history.rows = [{"epoch": 1, "val/acc": 0.5}, {"epoch": 2, "val/acc": 0.625}]
    figure = plot_curves([write_run(tmp_path / "a", [0.5]), history, history.rows[:1]], metrics=["val/acc"])
    assert lines_of(figure.axes[0]) == [([1], [0.5]), ([1, 2], [0.5, 0.625]), ([1], [0.5])]
    assert names_of(figure)[1:] == ["rows 2", "rows 3"]


def test_epochs_without_a_metric_and_runs_that_were_not_validated_have_no_point(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "train/loss": 2.0}, {"epoch": 2, "train/loss": 1.0, "val/acc": 0.5}]
    loss, acc = plot_curves([rows], metrics=["train/loss", "val/acc"]).axes
    assert (lines_of(loss), lines_of(acc)) == ([([1, 2], [2, 1])], [([2], [0.5])])
    run = write_run(tmp_path / "a", [0.5], monitor="train/loss")
    assert lines_of(plot_curves([run], metrics=["train/loss"]).axes[0]) == [([1], [1.0])]


def test_of_more_runs_than_colours_the_best_have_a_colour_and_a_label() -> None:
    figure = plot_curves([[{"epoch": 1, "val/loss": abs(k - 7)}] for k in range(14)], metrics=["val/loss"])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [*(f"rows {k}" for k in range(3, 13)), "4 more"]  # rows 8 has the least loss
    colours = [str(line.get_color()) for line in figure.axes[0].lines]
    assert (len(set(colours[:10])), len(set(colours[10:]))) == (10, 1)


@pytest.mark.parametrize(
    ("compared", "metrics", "sentence"),
    [
        ("runs/1", "val/acc", r"^plot_curves takes a list of runs: .*; got 'runs/1'\.$"),
        ([], "val/acc", r"^plot_curves takes a list of runs: .*; the list is empty\.$"),
        ([{"epoch": 1}], "val/acc", r"one dict an epoch; \{'epoch': 1\} in it is none of them\.$"),
        ([[{"val/acc": 0.5}]], "val/acc", r"in it is none of them\.$"),
        ([3], "val/acc", r"; 3 in it is none of them\.$"),
        ([[{"epoch": 1, "val/acc": 0.5}]], "val/accuracy", r"no metric 'val/accuracy'.*val/acc"),
        ([[{"epoch": 1, "val/acc": 0.5}]], [], r"^metrics is empty; the runs have val/acc\.$"),
    ],
)
def test_what_cannot_be_drawn_is_answered_in_a_sentence(compared: Any, metrics: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        plot_curves(compared, metrics)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not the folder of a finished run"):
        plot_curves([tmp_path])
