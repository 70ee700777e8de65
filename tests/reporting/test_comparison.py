"""Test `finetune.reporting.comparison`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.reporting import comparison
from finetune.reporting.comparison import PairedTest
from tests.helpers import make_run


def test_label_names_runs_by_what_differs(tmp_path: Path) -> None:
    found = [make_run(tmp_path, str(i), [1], f"seed: {i}\noptimizer: {{lr: 0.1}}\npaths: {{x: {i}}}") for i in range(2)]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["seed=0", "seed=1"]
    grid = [(1, 1), (1, 2), (2, 1)]
    found = [make_run(tmp_path, f"{a}{b}", [1], f"optimizer: {{lr: 0.{a}}}\nwarm: {{lr: {b}}}") for a, b in grid]
    comparison.label_runs(found)
    assert found[0].label == "optimizer.lr=0.1 warm.lr=1"
    # one key is enough, and the other one is named
    comparison.label_runs(found[1:])
    assert [run.label for run in found[1:]] == ["lr=0.1", "lr=0.2"]
    assert comparison.differing_keys(found[1:]) == ["optimizer.lr", "warm.lr"]


def test_label_always_has_model_and_strategy_where_they_differ(tmp_path: Path) -> None:
    found = [make_run(tmp_path, a, [1], f"model: {{name: {a}}}", strategy=b) for a, b in (("m", "s"), ("n", "t"))]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["model=m s", "model=n t"]


def test_label_names_strategies_and_not_their_parts(tmp_path: Path) -> None:
    found = [
        make_run(tmp_path, name, [1], f"seed: 0\nstrategy: {{groups: [{name}]}}", strategy=name) for name in ("scratch", "bitfit")
    ]  # fmt: skip
    comparison.label_runs(found)
    assert [run.label for run in found] == ["scratch", "bitfit"]


def test_label_has_four_digits_of_a_drawn_number_and_one_group_of_a_strategy(tmp_path: Path) -> None:
    found = [
        make_run(tmp_path, name, [1], f"strategy: {{groups: [{{lr: 1.0}}, {{lr: {rate}}}]}}")
        for name, rate in (("a", 0.0376187803272482), ("b", 0.001))
    ]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["lr=0.03762", "lr=0.001"]
    assert comparison.differing_keys(found) == ["strategy.groups.1.lr"]


def test_label_names_a_preset_and_not_its_parts(tmp_path: Path) -> None:
    parts = {"good": "scheduler: {_target_: a.Cosine}, lr: 1", "best": "scheduler: {_target_: null}, lr: 2"}
    found = [make_run(tmp_path, name, [1], f"{{preset: {name}, {text}}}") for name, text in parts.items()]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["preset=good", "preset=best"]


def test_label_names_a_class_by_its_name(tmp_path: Path) -> None:
    found = [make_run(tmp_path, name, [1], f"optimizer: {{_target_: torch.optim.{name}}}") for name in ("SGD", "Adam")]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["optimizer=SGD", "optimizer=Adam"]


def test_label_of_equal_runs_is_their_folder(tmp_path: Path) -> None:
    found = [make_run(tmp_path, name, [1], "seed: 0") for name in ("a", "b")]
    comparison.label_runs(found)
    assert [run.label for run in found] == ["finetune a", "finetune b"]


def test_groups_are_means_over_seeds(tmp_path: Path) -> None:
    shares = {0: [1, 1, 1, 0], 1: [1, 1, 0, 0], 2: [1, 0, 0, 0]}
    found = [make_run(tmp_path, f"{lr}{s}", r, f"seed: {s}\nlr: {lr}") for lr in (1, 2) for s, r in shares.items()]
    comparison.label_runs(found)
    groups = comparison.group_seeds(found)
    assert [g.label for g in groups] == ["lr=1", "lr=2"]
    assert groups[0].mean == 0.5
    assert 4.303 * 0.25 / 3**0.5 > 0.5  # half the interval by Student's t: it reaches beyond what a share can be
    assert groups[0].interval == (0, 1)
    assert comparison.group_seeds(found[:1]) == []
    found[1].val_images = ["of other data"]
    assert [len(g.accuracies) for g in comparison.group_seeds(found)] == [2, 1, 3]


def test_seeds_whose_rates_were_found_are_of_one_configuration(tmp_path: Path) -> None:
    found = [
        make_run(tmp_path, str(s), [1, 0], f"seed: {s}\noptimizer: {{lr: 0.0{s + 1}}}", found_lr=0.01) for s in range(2)
    ]
    comparison.label_runs(found)
    assert [len(g.accuracies) for g in comparison.group_seeds(found)] == [2]
    assert comparison.differing_keys(found) == ["seed"]


def test_the_interval_of_a_mean_is_by_students_t_and_two_runs_are_too_few() -> None:
    half = 4.303 * 0.1 / 3**0.5
    assert comparison.SeedGroup("a", [0.4, 0.5, 0.6], 1.0).interval == pytest.approx((0.5 - half, 0.5 + half))
    two = comparison.SeedGroup("a", [0.5, 0.6], 1.0)
    assert (two.interval, two.interval_text) == (None, "2 are too few")
    assert comparison.SeedGroup("a", [0.5], 1.0).interval_text == "-"
    same = comparison.SeedGroup("a", [0.7] * 3, 1.0)  # an interval without width would be a lie
    assert (same.interval, same.interval_text) == (None, "always the same")


def test_compare_with_best_counts_image_by_image(tmp_path: Path) -> None:
    best, other = make_run(tmp_path, "a", [1] * 20), make_run(tmp_path, "b", [1] * 10 + [0] * 10)
    far = make_run(tmp_path, "c", [1] * 19)
    found = comparison.compare_with_best([best, other, far])
    assert found[0] is None
    assert found[2] is None  # evaluated on other images
    assert found[1] is not None
    assert (found[1].only_best, found[1].only_this, found[1].p) == (10, 0, pytest.approx(2 / 1024))
    assert "10 fewer correct (10 against 0); significant" in found[1].description
    assert "not significant" in PairedTest(3, 2, 1.0).description
    assert PairedTest(0, 0, 1.0).description == "the same predictions"
