"""Test `finetune.cli.space`."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from finetune.cli.space import Choice, Interval, Space, read_dimension, read_space, refuse_ranges, require_dimensions
from finetune.io.paths import CONF
from finetune.training.strategy import Strategy


def read(word: str) -> Choice | Interval:
    return read_dimension(OverridesParser.create().parse_override(word))


def space_of(params: dict[str, str] | None, *typed: str) -> Space:
    return read_space(OmegaConf.create({"hydra": {"sweeper": {"params": params}}}), typed)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=interval(0,1)", Interval(0.0, 1.0)),
        ("a=tag(log,interval(1e-4,1e-1))", Interval(1e-4, 1e-1, log=True)),
        ("a=int(interval(1,5))", Interval(1, 5, integer=True)),
        ("a=int(tag(log,interval(1,64)))", Interval(1, 64, integer=True, log=True)),
        ("a=choice(x,y)", Choice(("x", "y"))),
        ("a=x,y,x", Choice(("x", "y"))),
        ("a=1,null", Choice(("1", "null"))),
        ("a=[1,2],[3]", Choice(("[1,2]", "[3]"))),
        ("a='x y',z", Choice(("'x y'", "z"))),
        ("a=range(1,5)", Choice(("1", "2", "3", "4"), range(1, 5))),
        ("a=range(8,0,-2)", Choice(("8", "6", "4", "2"), range(8, 0, -2))),
        ("a=range(0,1,0.25)", Choice(("0.0", "0.25", "0.5", "0.75"))),
    ],
)
def test_ranges_and_lists_are_read_as_hydra_means_them(word: str, expected: Choice | Interval) -> None:
    assert read(word) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("a=interval(1,0)", r"a=interval\(1,0\): an interval is interval\(LOW,HIGH\), the smaller number first"),
        ("a=interval(0,inf)", "smaller number first"),
        ("a=tag(log,interval(0,1))", r"tag\(log, ...\) takes numbers above 0"),
        ("a=range(3,3)", "there is no value in it for a"),
    ],
)
def test_ranges_that_are_none_are_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(word)


def test_drawn_numbers_lie_in_the_interval_and_are_spread_as_asked() -> None:
    generator = random.Random(0)
    plain = [float(Interval(0.0, 1.0).draw(generator)) for _ in range(2000)]
    log = [float(Interval(1e-4, 1.0, log=True).draw(generator)) for _ in range(2000)]
    assert min(plain) >= 0
    assert max(plain) <= 1
    assert sum(value < 0.25 for value in plain) / 2000 == pytest.approx(0.25, abs=0.04)
    # a quarter of the decades
    assert sum(value < 1e-3 for value in log) / 2000 == pytest.approx(0.25, abs=0.04)
    assert math.isclose(math.log10(min(log)), -4, abs_tol=0.05)
    whole = [Interval(1, 4, integer=True).draw(generator) for _ in range(2000)]
    assert {value: whole.count(value) for value in "1234"} == pytest.approx(dict.fromkeys("1234", 500), abs=80)


def test_drawn_numbers_are_spelled_so_that_they_are_read_as_the_same() -> None:
    generator = random.Random(1)
    drawn = [Interval(1e-7, 1e-5, log=True).draw(generator) for _ in range(50)]
    parser = OverridesParser.create()
    assert [parser.parse_override(f"a={text}").value() for text in drawn] == [float(text) for text in drawn]


def test_points_are_different_and_a_longer_draw_begins_with_the_shorter() -> None:
    space = space_of(None, "a=1,2,3", "b=interval(0,1)")
    points = space.draw(20, seed=3)
    assert len({tuple(point.items()) for point in points}) == 20
    assert points[:5] == space.draw(5, seed=3)
    assert points[:5] != space.draw(5, seed=4)
    small = space_of(None, "a=1,2,3", "b=x,y").draw(100, seed=0)
    assert sorted((p["a"], p["b"]) for p in small) == [(a, b) for a in "123" for b in "xy"]


FILE = {
    "strategy": "choice(differential, lp_ft)",
    "strategy.groups.1.lr": "interval(0, 1)",
    "optimizer.lr": "interval(1,2)",
}


def test_space_is_that_of_the_file_and_of_the_command_line() -> None:
    space = space_of(FILE, "seed=1,2", "report=false")
    assert list(space.dimensions) == ["strategy", "strategy.groups.1.lr", "optimizer.lr", "seed"]
    assert space.fixed == ("report=false",)
    assert space.first() == [
        "report=false",
        "strategy=differential",
        "strategy.groups.1.lr=0.0",
        "optimizer.lr=1.0",
        "seed=1",
    ]


@pytest.mark.parametrize(
    ("typed", "varied", "left"),
    [
        (["optimizer.lr=0.1"], ["strategy", "strategy.groups.1.lr"], ("optimizer.lr",)),
        (["optimizer.lr=3,4"], ["strategy", "strategy.groups.1.lr", "optimizer.lr"], ("optimizer.lr",)),
        # the file's group 1 is one of the file's strategies
        (["strategy=gradual"], ["optimizer.lr"], ("strategy", "strategy.groups.1.lr")),
        # the file does not choose the optimizer
        (["optimizer=adamw"], ["strategy", "strategy.groups.1.lr", "optimizer.lr"], ()),
    ],
)
def test_key_that_the_command_line_fixes_leaves_the_space(
    typed: list[str], varied: list[str], left: tuple[str, ...]
) -> None:
    space = space_of(FILE, *typed)
    assert list(space.dimensions) == varied
    assert space.left == left


@pytest.mark.parametrize("path", sorted((CONF / "sweep" / "space").glob("*.yaml")), ids=lambda path: path.stem)
def test_groups_that_a_space_of_ours_tunes_are_trained(path: Path) -> None:
    space: Any = OmegaConf.to_container(OmegaConf.load(path))
    numbers = [int(key.split(".")[2]) for key in space if key.startswith("strategy.groups.")]
    names = re.findall(r"[a-z_]+", str(space.get("strategy", "")).removeprefix("choice"))
    assert bool(numbers) == (path.stem == "finetune")
    for name in names if numbers else ():
        assert all(Strategy.load(name).groups[number].start is not None for number in numbers)


def test_option_of_a_group_fixes_the_value_of_the_same_name() -> None:
    space = space_of({"data.augment": "choice(none, rand)", "seed": "1"}, "data/augment=mine", "+seed=3")
    assert not space.dimensions
    assert space.fixed == ("data/augment=mine", "+seed=3")


def test_last_of_several_words_counts_as_in_hydra() -> None:
    space = space_of(None, "seed=1,2", "seed=3", "a=4", "a=5,6")
    assert (space.fixed, dict(space.dimensions)) == (("seed=3",), {"a": Choice(("5", "6"))})


def test_grid_refuses_ranges_and_other_sweeps_points_that_are_all_the_same() -> None:
    refuse_ranges(space_of(None, "a=1,2", "b=range(1,4)"))
    with pytest.raises(ValueError, match=r"and a, b are ranges: give sweep=random or sweep=optuna"):
        refuse_ranges(space_of(None, "a=interval(1,2)", "b=int(interval(1,4))", "c=1,2"))
    nothing: Any = space_of(None, "a=1")
    with pytest.raises(ValueError, match="sweep=optuna: nothing varies"):
        require_dimensions(nothing, "optuna")
