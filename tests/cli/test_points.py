"""Test `finetune.cli.points`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from finetune.cli import points
from finetune.cli.points import Point


def config(sweep: Path, /, **values: Any) -> DictConfig:
    return OmegaConf.create({"hydra": {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(sweep)}}, "seed": 0, **values})


def claim(sweep: Path, number: int, /, **values: Any) -> str:
    return points.point_dir(number, _root_=config(sweep, **values))


def test_points_of_a_new_sweep_have_their_numbers_for_folders(tmp_path: Path) -> None:
    assert [claim(tmp_path, i, seed=i) for i in range(3)] == ["0", "1", "2"]
    assert claim(tmp_path, 1, seed=1) == "1"  # Hydra asks several times
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_a_point_is_recognised_by_its_configuration_whatever_its_number(tmp_path: Path) -> None:
    for i, seed in enumerate((5, 6)):
        claim(tmp_path, i, seed=seed)
    # the sweep is repeated with one value more in front
    assert [claim(tmp_path, i, seed=seed) for i, seed in enumerate((4, 5, 6))] == ["2", "0", "1"]
    # what is logged and where, and who decodes, changes nothing that is trained
    assert claim(tmp_path, 7, seed=6, data={"num_workers": 3, "cache_images": True}) == "1"
    assert claim(tmp_path, 7, seed=6, report=False, logger={"a": 1}, paths={"b": 2}, sweep={"retry": False}) == "1"
    assert claim(tmp_path, 7, seed=6, optimizer={"lr": 1}) == "7"


def test_a_folder_of_something_else_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "plots").mkdir()
    assert claim(tmp_path, 0) == "1"


def test_a_relative_folder_of_images_is_another_one_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        ids.append(points.configuration_id(config(tmp_path, data={"root": "photos"})))
    assert ids[0] != ids[1]
    assert points.configuration_id(config(tmp_path, data={"root": str(tmp_path / "b" / "photos")})) == ids[1]


def test_weights_and_checkpoints_are_those_of_a_file_wherever_it_is_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.pth", "a.ckpt", "b.ckpt", "default"):
        (tmp_path / name).touch()

    def id_of(weights: str, checkpoint: str) -> str:
        return points.configuration_id(config(tmp_path, model={"weights": weights}, ckpt_path=checkpoint))

    assert id_of("w.pth", "a.ckpt") == id_of(str(tmp_path / "w.pth"), str(tmp_path / "a.ckpt"))
    assert id_of("w.pth", "a.ckpt") != id_of("w.pth", "b.ckpt")
    assert id_of("default", "a.ckpt") != id_of(str(tmp_path / "default"), "a.ckpt")  # a name, not that file


def test_what_names_the_folder_or_the_time_of_a_run_is_the_same_in_every_run(tmp_path: Path) -> None:
    value = "${hydra:runtime.output_dir}/${now:%S}"  # neither is known here
    ids = {points.configuration_id(config(tmp_path, callbacks={"x": {"dirpath": value}})) for _ in range(2)}
    assert len(ids) == 1
    a, b = (points.configuration_id(config(tmp_path, seed=seed, data={"split_seed": "${seed}"})) for seed in (0, 1))
    assert a != b
    same = points.configuration_id(config(tmp_path, data={"split_seed": 0}))
    assert same == a


def test_a_folder_is_held_by_one_process_at_a_time_and_not_that_of_the_sweep(tmp_path: Path) -> None:
    with points.held(tmp_path / "0", tmp_path) as first, points.held(tmp_path / "0", tmp_path) as second:
        assert (first, second) == (True, False)
    with points.held(tmp_path / "0", tmp_path) as again:
        assert again
    with (
        pytest.raises(ValueError, match=r"hydra\.sweep\.subdir must name a folder for each point"),
        points.held(tmp_path / "." / "0" / "..", tmp_path),
    ):
        pass


def test_a_state_is_read_as_it_was_written_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    point = Point(tmp_path / "0", configuration="x").end("failed", error="no such model")
    assert points.read_point(tmp_path / "0") == point
    assert point.ended is not None
    assert abs(point.ended - time.time()) < 60
    for text in ("{", '{"words": 1}', "[1]", '{"state": "done", "ended": "x"}'):
        (tmp_path / "0" / points.STATUS_FILE).write_text(text)
        assert points.read_point(tmp_path / "0").state == "new"
    (tmp_path / points.SWEEP_FILE).write_text("[1]")
    assert points.describe_progress(tmp_path) == "0 ended"


@pytest.mark.parametrize(
    ("state", "saved", "goes_on"),
    [("interrupted", True, True), ("running", True, True), ("interrupted", False, False), ("failed", True, False)],
)
def test_a_point_goes_on_where_it_was_stopped_and_has_saved_something(
    state: str, saved: bool, goes_on: bool, tmp_path: Path
) -> None:
    if saved:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert Point(tmp_path, state).can_go_on == goes_on


def test_clear_removes_what_a_run_writes_and_nothing_else(tmp_path: Path) -> None:
    kept = (".hydra/overrides.yaml", "train.log", points.STATUS_FILE, "notes/mine.txt")
    for name in (*kept, "config.yaml", "checkpoints/last.ckpt", "hpc_ckpt_1.ckpt", "metrics.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    Point(tmp_path).clear()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)


def test_progress_counts_what_has_ended_and_the_time_of_this_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    points.write_sweep(tmp_path, 12)
    assert points.describe_progress(tmp_path) == "0 of 12"
    # to which the sweep has not come, or of another one
    Point(tmp_path / "old", "done", began=300.0, ended=400.0).write()
    assert points.describe_progress(tmp_path) == "0 of 12"
    Point(tmp_path / "0", "done", began=1001.0, ended=400.0).write()  # was passed over
    assert points.describe_progress(tmp_path) == "1 of 12"
    now = 1060.0
    Point(tmp_path / "1", "done", began=1001.0, ended=1030.0).write()
    Point(tmp_path / "2", "failed", began=1030.0, ended=1060.0).write()
    Point(tmp_path / "3", "running", began=1060.0).write()
    # two in 60 s, nine are left
    assert points.describe_progress(tmp_path) == "3 of 12, 1 failed, about 4 min left"
    now = 1000.0
    points.write_sweep(tmp_path, None)
    assert points.describe_progress(tmp_path) == "3 ended, 1 failed"
