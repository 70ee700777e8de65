"""Run sweeps: several runs of one command."""

from __future__ import annotations

import csv
import gc
import itertools
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import predict, train
from finetune.training.progress import EpochSummary
from tests.end_to_end.helpers import TINY_RESNET, Command, read_metrics, read_table, timeless
from tests.helpers import TINY


@pytest.mark.slow
def test_sweep_ends_with_a_leaderboard(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={photos}", f"hydra.sweep.dir={tmp_path / 'sweep'}", "trainer.max_epochs=1"]
    _, code = command("train", "-m", *words, "seed=0,1", "loss.mixup=0,bad")
    assert code == 2  # a point that fails does not take the others' table
    with (tmp_path / "sweep" / "leaderboard.csv").open(newline="") as file:
        assert sorted(r["run"] for r in csv.DictReader(file)) == ["seed=0", "seed=1"]
    printed = capsys.readouterr().out
    assert printed.count("Validation accuracy") == 1
    assert (tmp_path / "sweep" / "compare.html").exists()


RUNS = 200


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc here")
def test_two_hundred_runs_in_one_process_keep_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[int, int, int]] = []
    done = itertools.count(1)
    real = train.train

    def counted(cfg: Any) -> float | None:
        result = real(cfg)
        if next(done) % 20 == 0:
            gc.collect()
            # by type and not isinstance, which asks objects for their class, and torch has one that warns of it
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            seen.append((memory(), open_files(), tensors))
        return result

    monkeypatch.setattr(train, "train", counted)
    seeds = ",".join(map(str, range(RUNS)))
    train.main([*TINY, f"data.root={photos}", "trainer.max_epochs=1", "-m", f"seed={seeds}", "strategy=finetune"])
    assert len(seen) == RUNS // 20
    begin, end = seen[0], seen[-1]
    assert end[1] - begin[1] <= 2  # open files
    assert abs(end[2] - begin[2]) <= 20  # tensors
    assert end[0] - begin[0] < 50 << 20  # a quarter of a mebibyte a run
    with next(tmp_path.glob("runs/train/sweeps/*/leaderboard.csv")).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == RUNS


@pytest.mark.slow
@pytest.mark.parametrize("alone", [2])
def test_a_run_of_a_sweep_is_the_run_alone(
    alone: int, command: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    """Whatever ran before it in the same process, and failed."""
    words = [*TINY, f"data.root={photos}", "strategy=finetune", "data.augment=basic"]
    with pytest.raises(SystemExit):
        train.main([*words, "-m", "seed=0,1,2", "model=squeezenet1_1,resnet18", "data.image_size=17,32"])
    sweep = next(tmp_path.glob("runs/train/sweeps/*"))
    job = next(
        j
        for j in sweep.iterdir()
        if j.is_dir()
        and "seed=2" in (j / ".hydra" / "overrides.yaml").read_text()
        and "squeezenet1_1" in (j / ".hydra" / "overrides.yaml").read_text()
        and "=32" in (j / ".hydra" / "overrides.yaml").read_text()
    )
    folder, code = command("train", *words, "seed=2")
    assert code == 0
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (job, folder))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_sweep_over_several_devices_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data=imagefolder", f"data.root={photos}", "trainer=ddp", "trainer.devices=2", "-m", "seed=0,1"]
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "one device a run" in error
    assert "for seed in" in error


@pytest.mark.slow
def test_sweep_goes_on_after_pictures_that_failed(
    best_checkpoint: str, mixed: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        predict.main(
            ["-m", best_checkpoint, f"source={mixed},{photos}/val", f"hydra.sweep.dir={tmp_path}/sweep", "report=false"]
        )
    assert stop.value.code == 3
    assert len(read_table(tmp_path / "sweep" / "1" / "predictions.csv")) == 12


@pytest.mark.parametrize("word", ["hydra.mode=MULTIRUN", "++hydra.mode=MULTIRUN"])
def test_a_sweep_may_be_asked_for_in_the_configuration(
    word: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main([*TINY_RESNET, f"data.root={photos}", "trainer.max_epochs=1", word])
    assert list(tmp_path.glob("runs/train/sweeps/*/0/metrics.json"))


@pytest.mark.slow
def test_sweep_runs_every_point_in_a_folder_of_its_own(run_train: Callable[..., Path], tmp_path: Path) -> None:
    run_train("-m", "seed=0,1", "optimizer.lr=1e-3,1e-2", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/sweep")
    found = [read_metrics(tmp_path / "sweep" / str(i)) for i in range(4)]
    assert len({m["command"] for m in found}) == len(found)  # each of its point alone
    assert not any(" -m " in m["command"].removeprefix("python -m ") for m in found)
    assert (tmp_path / "sweep" / "multirun.yaml").exists()


@pytest.mark.slow
def test_sweep_point_is_the_same_as_the_run_alone(run_train: Callable[..., Path], tmp_path: Path) -> None:
    run_train("-m", "optimizer.lr=1e-1,1e-3", "strategy=finetune", f"hydra.sweep.dir={tmp_path}/sweep")
    alone = run_train("optimizer.lr=1e-3", "strategy=finetune", name="alone")
    assert timeless(read_metrics(alone)) == timeless(read_metrics(tmp_path / "sweep" / "1"))


@pytest.mark.slow
def test_sweep_goes_on_after_a_failed_point_and_names_it(
    run_train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_train("-m", "data.image_size=32,4,40", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/sweep")
    assert stop.value.code == 2
    assert "job 1 (data.image_size=4) failed: resnet18 needs images" in capsys.readouterr().err
    assert read_metrics(tmp_path / "sweep" / "2")["n_train"] == 24


def states(sweep: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text())["state"] for path in sweep.glob("*/status.json")}


def test_a_sweep_that_is_repeated_skips_what_is_done_and_runs_again_what_failed(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    words = [
        *TINY,
        f"data.root={tmp_path / 'link'}",
        "trainer.max_epochs=1",
        f"hydra.sweep.dir={sweep}",
        "report=false",
    ]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert command("train", "-m", *words, "seed=0,1")[1] == 2
    assert states(sweep) == {"0": "failed", "1": "failed"}
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(photos)
    capsys.readouterr()
    assert command("train", "-m", *words, "seed=1", "sweep.retry=false")[1] == 2
    assert "point 1 has failed before: data.root=" in capsys.readouterr().err
    assert command("train", f"resume={sweep}", "seed=0,1", "sweep.retry=true")[1] == 0
    assert states(sweep) == {"0": "done", "1": "done"}
    lines = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("seed=1"))
    assert lines[begin + 1].strip().startswith("val/acc 0.")
    assert lines[begin + 2].strip() == "2 of 2"
    written = {path: path.stat().st_mtime_ns for path in sweep.glob("*/checkpoints/*")}
    assert len(written) >= 4
    assert command("train", "-m", *words, "seed=2,1,0")[1] == 0  # in another order, with one more
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert states(sweep) == {"0": "done", "1": "done", "2": "done"}
    assert "seed=1: is done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on_within_the_point_and_ends_as_if_it_had_not_been(
    photos: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={photos}", "strategy=finetune", "data.augment=basic", "trainer.max_epochs=3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert command("train", "-m", *words, "seed=0,1", f"hydra.sweep.dir={whole}")[1] == 0
    real, epochs = EpochSummary.on_train_epoch_end, itertools.count()

    def stop(self: Any, *args: Any) -> None:
        real(self, *args)
        if next(epochs) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EpochSummary, "on_train_epoch_end", stop)
    capsys.readouterr()
    assert command("train", "-m", *words, "seed=0,1", f"hydra.sweep.dir={stopped}")[1] == 143
    assert states(stopped) == {"0": "done", "1": "interrupted"}
    assert f"resume={stopped}" in " ".join(capsys.readouterr().out.split())
    assert len(read_table(stopped / "1" / "metrics.csv")) == 2
    assert command("train", f"resume={stopped}")[1] == 0
    assert "seed=1: goes on" in capsys.readouterr().out
    a, b = (torch.load(f / "1" / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, stopped))
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert [row["val/loss"] for row in read_table(whole / "1" / "metrics.csv")] == [
        row["val/loss"] for row in read_table(stopped / "1" / "metrics.csv")
    ]


@pytest.mark.slow
def test_the_best_of_a_sweep_is_trained_again_and_on_all_images(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={photos}", "strategy=finetune", "trainer.max_epochs=2", "report=false"]
    assert command("train", "-m", *words, "optimizer.lr=1e-3,1e-9", f"hydra.sweep.dir={tmp_path}/sweep")[1] == 0
    printed = capsys.readouterr().out
    recipe = f"experiment={tmp_path}/sweep/best_config.yaml"
    assert recipe in printed
    best = max((read_metrics(tmp_path / "sweep" / name) for name in "01"), key=lambda m: m["best"]["val/acc"])
    again, code = command("train", recipe)
    assert code == 0
    assert timeless(read_metrics(again)) == timeless(best)
    more = re.search(r"without a validation: (.*)", printed)
    assert more is not None
    everything, code = command("train", recipe, *more[1].split(), "report=true")
    assert code == 0
    metrics = read_metrics(everything)
    assert (metrics["n_train"], metrics["n_val"]) == (best["n_train"] + best["n_val"], 0)
    assert not any(key.startswith("val/") for row in read_table(everything / "metrics.csv") for key in row)
    output = capsys.readouterr().out
    assert "none is held out" in output
    assert "could not be written" not in output
    _, code = command("train", recipe, *more[1].split(), "strategy=feature_extract")  # whose features are kept
    assert code == 0
    assert f"Features  of {metrics['n_train']} + 0 images" in capsys.readouterr().out
    assert command("evaluate", f"ckpt={everything}")[1] == 2
    assert "lists no val images" in capsys.readouterr().err
