"""Print, write and draw the ranking of backbones."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.datamodule import ImageDataModule
from finetune.io.files import write_csv
from finetune.models.candidates import Candidate
from finetune.reporting import comparison, figures, html
from finetune.runtime import hardware
from finetune.runtime.console import echo, echo_link, field_line, print_table
from finetune.training.ranking import RankedBackbone


def print_data(data: ImageDataModule, folds: int) -> None:
    """Print which images backbones are ranked on, and which are not looked at."""
    text = f"{_describe_images(data)}; {folds} folds, each with an L2 strength chosen within the others"
    echo(field_line("Images", text))
    counts = data.splits["train"].counts(data.classes)
    rare = [f"{n} of {name}" for name, n in counts.items() if n < folds]
    if rare:
        text = f"fewer images than folds: {', '.join(rare[:5])}{' ...' if len(rare) > 5 else ''}; some heads see none or few of them."
        echo(field_line("Note", text))
    if data.bad_files:
        echo(field_line("Left out", f"{len(data.bad_files)} unreadable files; `finetune.check` names them"))
    if text := _describe_unseen(data):
        echo(field_line("Unseen", text))


def _describe_images(data: ImageDataModule) -> str:
    return f"{len(data.splits['train']):,} training images of {len(data.classes)} classes"


def _describe_unseen(data: ImageDataModule) -> str:
    others = [f"{len(split):,} {name}" for name, split in data.splits.items() if name != "train"]
    return f"the {' and '.join(others)} images, so that a later accuracy on them is honest" if others else ""


def print_progress(result: RankedBackbone) -> None:
    """Print that a backbone is done, or why it failed."""
    if result.reason:
        echo(field_line("Failed", f"{result.candidate.model}: {result.reason}"))
        return
    how = "features taken from the cache" if result.is_from_cache else "features computed"
    how += f", not kept ({result.obstacle})" if result.obstacle else ""
    echo(field_line("Done", f"{result.candidate.model}, {result.weights_source}: {how}, {result.seconds:.1f} s in all"))


class Ranking:
    """The results of all backbones, as lines, a table and a page."""

    def __init__(
        self,
        results: Sequence[RankedBackbone],
        data: ImageDataModule,
        folds: int,
        train_words: Sequence[str],
        command: Sequence[str],
    ) -> None:
        """Compare the results.

        Args:
            results: the most accurate first, those that failed last; one or more did not fail.
            data: that they were ranked on.
            folds: of the cross-validation.
            train_words: what `finetune.train` takes beside the model, for these images.
            command: the words of the ranking, to be typed again.
        """
        self.results, self.data, self.folds = results, data, folds
        self.ranked = [result for result in results if not result.reason]
        self._train_words, self._command = train_words, command
        self.tests = comparison.compare_with_first([result.correct for result in self.ranked])
        self.labels = {result.candidate: self._label(result.candidate) for result in results}
        points = [(_milliseconds(result), result.accuracy) for result in self.ranked]
        self.on_front = figures.pareto_front(points)

    def _label(self, candidate: Candidate) -> str:
        """Return the name of a model, with its weights where they distinguish it."""
        same = [result for result in self.results if result.candidate.model == candidate.model]
        return candidate.model if len(same) == 1 else f"{candidate.model}@{Path(candidate.weights).name}"

    def train_command(self, candidate: Candidate) -> str:
        """Return the command that trains a head on a backbone's features, which are in the cache."""
        weights = [] if candidate.weights == "default" else [f"model.weights={candidate.weights}"]
        words = [f"model={candidate.model}", *weights, "strategy=feature_extract", *self._train_words]
        return shlex.join(["python", "-m", "finetune.train", *words])

    # --- on the terminal ---------------------------------------------------------------------------------------

    def print(self, folder: Path, report: bool) -> None:
        """Print the table, what differs significantly from the best, and the command that trains it."""
        columns = ["backbone", "accuracy", "interval", "images/s", "params", "seconds", ""]
        rows = [self._cells(result, front) for result, front in zip(self.ranked, self.on_front, strict=True)]
        rows += [[self.labels[r.candidate], "failed", *["-"] * 4, ""] for r in self.results if r.reason]
        print_table("Accuracy of a linear head, cross-validated, and its 95 % interval", columns, rows)
        echo("* no other backbone here is both faster and better (the Pareto front)")
        for result, test in list(zip(self.ranked, self.tests, strict=True))[1:6]:
            if test is not None:
                echo(f"{self.labels[result.candidate]}, against the best:\n{field_line('', test.description)}")
        echo(f"{'Train':<10}{self.train_command(self.ranked[0].candidate)}")
        if report:
            echo_link("See", folder / "ranking.html")
        echo_link("" if report else "See", folder / "ranking.csv")

    def _cells(self, result: RankedBackbone, is_front: bool) -> list[str]:
        low, high = result.interval
        return [
            self.labels[result.candidate],
            f"{result.accuracy:.4f}",
            f"{low:.3f}-{high:.3f}",
            f"{result.images_per_second:.1f}",
            f"{result.parameters / 1e6:.1f} M",
            f"{result.seconds:.1f}",
            "*" if is_front else "",
        ]

    # --- files -------------------------------------------------------------------------------------------------

    def write(self, folder: Path, report: bool) -> None:
        """Write `ranking.csv` and, with `report`, `ranking.html`."""
        self._write_table(folder / "ranking.csv")
        if report:
            html.write_page(folder / "ranking.html", "ranking.html", **self._page())

    def _write_table(self, path: Path) -> None:
        columns = [
            "rank", "model", "weights", "accuracy", "low", "high", "correct", "images", "images_per_second", "parameters",
            "seconds", "from_cache", "pareto_front", "l2", "only_best_correct", "only_this_correct", "p", "reason",
        ]  # fmt: skip
        rows: list[list[Any]] = []
        for rank, (result, test, front) in enumerate(zip(self.ranked, self.tests, self.on_front, strict=True), start=1):
            shares = [f"{share:.6f}" for share in (result.accuracy, *result.interval)]
            rows.append([
                rank, result.candidate.model, result.candidate.weights, *shares, result.n_correct, len(result.correct),
                f"{result.images_per_second:.2f}", result.parameters, f"{result.seconds:.3f}", result.is_from_cache, front,
                " ".join(f"{l2:g}" for l2 in result.strengths),
                *([test.only_best, test.only_this, f"{test.p:.4g}"] if test else ["", "", ""]), "",
            ])  # fmt: skip
        for result in self.results:
            if result.reason:
                empty = [""] * (len(columns) - 4)
                rows.append(["", result.candidate.model, result.candidate.weights, *empty, result.reason])
        write_csv(columns, rows, path)

    def _page(self) -> dict[str, Any]:
        costs = (
            ("milliseconds an image", [_milliseconds(result) for result in self.ranked]),
            ("parameters", [float(result.parameters) for result in self.ranked]),
        )
        labels, accuracies = [self.labels[r.candidate] for r in self.ranked], [r.accuracy for r in self.ranked]
        drawn = [
            figures.cost_figure(
                list(zip(labels, values, accuracies, strict=True)), label, True, "cross-validated accuracy"
            )
            for label, values in costs
        ]
        return {
            "title": f"Backbones for {self.data.root.name if self.data.root is not None else 'a data set'}",
            "images": _describe_images(self.data),
            "unseen": _describe_unseen(self.data),
            "folds": self.folds,
            "ranked": list(zip(labels, self.ranked, self.tests, self.on_front, strict=True)),
            "failed": [(self.labels[r.candidate], r.reason) for r in self.results if r.reason],
            "n_insignificant": sum(test is not None and not test.significant for test in self.tests),
            "plots": [html.svg(figure, "accuracy against cost") for figure in drawn] if len(self.ranked) > 1 else [],
            "kept": not self.ranked[0].obstacle,
            "train": self.train_command(self.ranked[0].candidate),
            "again": shlex.join(self._command),
            "versions": hardware.installed_versions(),
            "made": time.strftime("%Y-%m-%d %H:%M"),
        }


def _milliseconds(result: RankedBackbone) -> float:
    return 1000 / result.images_per_second
