"""Test `finetune.reporting.ranking_page`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from finetune import ImageDataModule
from finetune.models.candidates import Candidate
from finetune.reporting import ranking_page
from finetune.reporting.ranking_page import Ranking
from finetune.training.ranking import RankedBackbone


def backbone(name: str, correct: list[int], speed: float, weights: str = "default") -> RankedBackbone:
    return RankedBackbone(
        Candidate(name, weights), "", "", np.array(correct, bool), [0.1, 0.01], speed, 1_200_000, 1.5, False
    )


@pytest.fixture
def ranking() -> Ranking:
    results = [
        backbone("best", [1] * 18 + [0] * 2, 10.0),
        backbone("fast", [1] * 16 + [0] * 4, 100.0, "a b.pth"),
        backbone("worse", [0] * 12 + [1] * 8, 50.0),
        RankedBackbone(Candidate("broken", "default"), "there is <no> such file"),
    ]
    data = ImageDataModule("photos")
    data.classes = ["ants", "bees"]
    data.splits = {"train": [0] * 20, "val": [0] * 5}  # type: ignore[dict-item]
    return Ranking(results, data, 5, ["data=imagefolder", "data.root=my photos"], ["python", "-m", "finetune.rank"])


def test_ranking_is_printed_in_80_columns(ranking: Ranking, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranking.print(tmp_path, report=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith(("Train", "See")) and str(tmp_path) not in line) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["best"] == ["0.9000", "0.699-0.972", "10.0", "1.2", "M", "1.5", "*"]  # Wilson, by hand
    assert rows["fast"][-1] == "*"
    assert rows["worse"][-1] == "1.5"  # another is faster and better
    assert rows["broken"][0] == "failed"
    assert (
        "Train     python -m finetune.train model=best strategy=feature_extract data=imagefolder 'data.root=my photos'"
        in lines
    )


def test_command_names_weights_that_are_not_the_default(ranking: Ranking) -> None:
    assert " 'model.weights=a b.pth' " in ranking.train_command(ranking.ranked[1].candidate)


def test_table_has_every_backbone_and_its_test(ranking: Ranking, tmp_path: Path) -> None:
    ranking.write(tmp_path, report=False)
    assert not (tmp_path / "ranking.html").exists()
    with (tmp_path / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("rank", "model", "correct", "images", "pareto_front", "only_best_correct", "only_this_correct", "reason")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("1", "best", "18", "20", "True", "", "", ""),
        ("2", "fast", "16", "20", "True", "2", "0", ""),
        ("3", "worse", "8", "20", "False", "12", "2", ""),
        ("", "broken", "", "", "", "", "", "there is <no> such file"),
    ]
    assert rows[0]["l2"] == "0.1 0.01"
    # McNemar: twice the tail of a fair coin at 2 of 14, 212 / 2**14, times two for two tests
    assert float(rows[2]["p"]) == pytest.approx(2 * 212 / 2**14, rel=1e-3)


def test_page_says_what_differs_and_what_failed(ranking: Ranking, tmp_path: Path) -> None:
    ranking.write(tmp_path, report=True)
    page = " ".join((tmp_path / "ranking.html").read_text(encoding="utf-8").split())
    assert "1 of the 2 others does not differ significantly from it; among those take the cheapest" in page
    assert "the 5 val images, so that a later accuracy on them is honest" in page
    assert "there is &lt;no&gt; such file" in page
    assert page.count("<svg") == 2
    assert "<script" not in page


def test_weights_are_named_where_they_distinguish_two() -> None:
    results = [backbone("a", [1, 1], 1.0, "default"), backbone("a", [1, 0], 1.0, "x/y.pth"), backbone("b", [1, 0], 1.0)]
    made = Ranking(results, ImageDataModule("."), 3, [], [])
    assert list(made.labels.values()) == ["a@default", "a@y.pth", "b"]


def test_classes_with_fewer_images_than_folds_are_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ImageDataModule(photos, per_class=4).prepare()
    ranking_page.print_data(data, 4)
    assert "fewer images" not in capsys.readouterr().out
    ranking_page.print_data(data, 5)
    printed = " ".join(capsys.readouterr().out.split())
    assert "fewer images than folds: 4 of cat, 4 of dog, 4 of emu; some heads" in printed
    assert "12 training images of 3 classes; 5 folds" in printed
    assert "the 12 val images" in printed
