"""The whole command, end to end, on tiny images."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from finetune import Family, FineTuner, evaluate, register, train
from finetune.cli.groups import group_options
from finetune.models import specs
from finetune.reporting import runs

TINY = [
    "model=resnet18",
    "model.weights=none",
    "data.image_size=32",
    "data.num_workers=0",
    "data.batch_size=8",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "report=false",
]


@pytest.fixture
def run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run the command in this process; returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def go(*argv: str, name: str = "run", data: Path = photos, **kwargs: Any) -> Path:
        folder = tmp_path / name
        train.main([*TINY, "data=imagefolder", f"data.root={data}", f"hydra.run.dir={folder}", *argv])
        return folder

    return go


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    """The best epoch of a run, without how long it took."""
    return {k: v for k, v in found["best"].items() if k not in ("seconds", "images_per_second")}


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_folder_holds_what_is_promised(run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("report=true")
    for name in (
        ".hydra/config.yaml", ".hydra/overrides.yaml", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "metrics.csv", "metrics.json", "split.csv", "train.log", "plots/samples.png", "plots/curves.png",
        "plots/confusion_matrix.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    for picture in (folder / "plots").glob("*.png"):
        Image.open(picture).load()
    found = metrics(folder)
    assert {
        "val/acc",
        "val/loss",
        "train/acc",
        "train/loss",
        "val/f1",
        "val/auroc",
        "lr/head",
        "lr/trunk",
        "epoch",
    } <= found["best"].keys()
    assert found["best"].keys() == found["last"].keys()
    assert found["last"]["epoch"] == 2
    assert found["classes"] == ["cat", "dog", "emu"]
    assert (found["n_train"], found["n_val"]) == (24, 12)
    assert (found["total_parameters"], found["trainable_parameters"]) == (11_178_051, 1539)
    assert {"total", "data", "network", "fit"} <= found["seconds"].keys()
    assert {"torch", "torchvision", "lightning", "python"} <= found["versions"].keys()
    assert found["command"].startswith("python -m finetune.train ")
    assert sum(map(sum, found["confusion_matrix"])) == 12
    table = rows(folder)
    assert [r["epoch"] for r in table] == ["1", "2"]
    assert float(table[0]["lr/trunk"]) == 0
    assert float(table[0]["lr/head"]) == pytest.approx(1e-3)
    assert len((folder / "split.csv").read_text().splitlines()) == 37
    printed = capsys.readouterr().out
    for part in (
        "24 train, 12 val",
        "cat 8, dog 8, emu 8",
        "1,539 of 11,178,051",
        "Strategy feature_extract",
        "epoch 2/2",
        "of 12 correct",
        "cpu with",
    ):
        assert part in printed
    assert max(len(line) for line in printed.splitlines() if "/" not in line) <= 80


def test_checkpoints_are_the_best_and_the_last_epoch(run: Callable[..., Path]) -> None:
    folder = run("trainer.max_epochs=4", "strategy=finetune", "optimizer.lr=0.05")
    found = metrics(folder)
    best, last = (torch.load(folder / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("best", "last"))
    assert best["epoch"] == found["best"]["epoch"] - 1  # Lightning counts from 0
    assert last["epoch"] == 3
    assert found["best"]["val/acc"] == max(float(r["val/acc"]) for r in rows(folder))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best.ckpt", "best.npz", "last.ckpt"]
    module = FineTuner.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert module.classes == ["cat", "dog", "emu"]


@pytest.mark.slow
def test_same_seed_same_metrics_and_another_seed_others(run: Callable[..., Path]) -> None:
    def without_seconds(folder: Path) -> list[dict[str, str]]:
        return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows(folder)]

    argv = ["strategy=finetune", "data.augment=trivial"]
    first = without_seconds(run(*argv, name="a"))
    assert without_seconds(run(*argv, name="b")) == first
    assert without_seconds(run(*argv, "data.num_workers=2", name="c")) == first
    assert without_seconds(run(*argv, "seed=1", name="d")) != first


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(s, marks=[] if s == "gradual" else [pytest.mark.slow]) for s in group_options("strategy")],
)
def test_resume_continues_where_the_run_stopped(strategy: str, run: Callable[..., Path]) -> None:
    argv = [f"strategy={strategy}", "scheduler=constant", "model=squeezenet1_1", "optimizer.lr=0.01"]
    whole = run(*argv, "trainer.max_epochs=4", name="whole")
    # a share of the run as start depends on its length, so the first half is a run of four epochs that was stopped
    half = run(*argv, "trainer.max_epochs=4", "+trainer.max_steps=6", name="half")
    assert metrics(half)["last"]["epoch"] == 2
    rest = run(*argv, "trainer.max_epochs=4", f"ckpt_path={half}/checkpoints/last.ckpt", name="rest")
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (whole, rest))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [r["epoch"] for r in rows(rest)] == ["1", "2", "3", "4"]
    assert timeless(metrics(rest)) == timeless(metrics(whole))
    assert (rest / "checkpoints" / "best.ckpt").exists()
    there, here = (
        runs.read_run(whole).predictions,
        runs.read_run(rest).predictions,
    )  # copied, if the best epoch was before the stop
    assert there is not None
    assert here is not None
    assert (there.probabilities == here.probabilities).all()
    assert there.keys == here.keys


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model=squeezenet1_1"], "its model is resnet18, this run's is squeezenet1_1"),
        (["strategy=finetune"], "its strategy is feature_extract, this run's is finetune"),
        pytest.param(["data.classes=[cat,dog]"], "its classes is", marks=pytest.mark.slow),
    ],
)
def test_resume_of_another_run_is_refused(
    argv: list[str], message: str, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("trainer.max_epochs=1", name="first")
    with pytest.raises(SystemExit) as stop:
        run(f"ckpt_path={first}", *argv, name="second")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_resume_from_weights_or_nothing_is_refused(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    for path, message in (
        ("weights.ckpt", "start from it with model.weights="),
        ("nothing.ckpt", "there is no such file"),
    ):
        with pytest.raises(SystemExit):
            run(f"ckpt_path={path}", name=f"run_{path}")
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_weights_from_our_own_checkpoint_whatever_its_classes(run: Callable[..., Path]) -> None:
    source = run("data.classes=[cat,dog]", "strategy=finetune", "model.preprocess={mean:0.5,std:0.5}", name="source")
    target = run(
        f"model.weights={source}/checkpoints/best.ckpt", "trainer.max_epochs=1", "data.image_size=null", name="target"
    )
    a, b = (torch.load(f / "checkpoints" / "best.ckpt", weights_only=True) for f in (source, target))
    assert torch.equal(a["state_dict"]["backbone.conv1.weight"], b["state_dict"]["backbone.conv1.weight"])
    assert b["state_dict"]["backbone.fc.weight"].shape == (3, 512)
    assert b["hyper_parameters"]["preprocess"] == a["hyper_parameters"]["preprocess"]  # 32 pixels and 0.5 come along
    assert "120 trunk tensors from" in metrics(target)["weights"]


@pytest.mark.slow
def test_run_folder_of_another_run_is_refused(run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run()
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2
    assert "holds another run" in capsys.readouterr().err
    assert (folder / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["+callbacks=ema", "strategy=finetune"], marks=pytest.mark.slow),
        pytest.param(["+callbacks=early_stopping"], marks=pytest.mark.slow),
        ["+callbacks=[ema,early_stopping]"],
        ["optimizer=adamw", "scheduler=cosine", "scheduler.warmup=1"],
        pytest.param(["scheduler=onecycle"], marks=pytest.mark.slow),
        pytest.param(["scheduler=plateau"], marks=pytest.mark.slow),
        pytest.param(["scheduler=step"], marks=pytest.mark.slow),
        ["loss.class_weights=auto", "loss.label_smoothing=0.1", "loss.mixup=0.2", "loss.cutmix=1"],
        pytest.param(["trainer=debug", "trainer.max_epochs=1"], marks=pytest.mark.slow),
        pytest.param(["trainer.accumulate_grad_batches=2", "monitor=val/loss"], marks=pytest.mark.slow),
        pytest.param(["data.augment=rand"], marks=pytest.mark.slow),
        ["report=true"],
    ],
)
def test_options_run(argv: list[str], run: Callable[..., Path]) -> None:
    folder = run(*argv)
    assert metrics(folder)["best"]["val/acc"] >= 0
    assert (folder / "plots" / "curves.png").exists() == ("report=true" in argv)


@pytest.mark.slow
def test_file_names_that_are_no_text_go_through(run: Callable[..., Path], make_images: Callable[..., Path]) -> None:
    root = make_images({"train": {"cat": 6, "dog": 6}, "val": {"cat": 2, "dog": 2}})
    for split in ("train", "val"):
        (root / split / "cat" / "00.png").rename(root / split / "cat" / os.fsdecode(b"raw\xff.png"))
        (root / split / "dog" / os.fsdecode(b"bad\xfe.png")).write_text("not a picture")
    folder = run("trainer.max_epochs=1", data=root)
    assert b"train/cat/raw\xff.png,cat,train" in (folder / "split.csv").read_bytes()
    assert b"bad\xfe.png" in (folder / "bad_files.csv").read_bytes()
    evaluate.main([f"ckpt={folder}/checkpoints/best.ckpt", f"hydra.run.dir={folder}_e"])
    assert b"val/cat/raw\xff.png" in (folder.with_name("run_e") / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_early_stopping_stops(run: Callable[..., Path]) -> None:
    folder = run(
        "+callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0", "trainer.max_epochs=9"
    )
    assert len(rows(folder)) == 2


def test_test_split_is_judged_once_with_the_best_checkpoint(
    run: Callable[..., Path], make_images: Callable[..., Path]
) -> None:
    root = make_images({s: {"cat": 6, "dog": 6} for s in ("train", "val", "test")})
    found = metrics(run(data=root))
    assert found["n_test"] == 12
    assert {"test/acc", "test/loss", "test/f1"} <= found["test"].keys()


@pytest.mark.slow
def test_judging_test_leaves_the_record_of_the_run_alone(
    run: Callable[..., Path], make_images: Callable[..., Path]
) -> None:
    root = make_images({s: {"cat": 6, "dog": 6} for s in ("train", "val", "test")})
    found = metrics(
        run("optimizer.lr=0", "trainer.max_epochs=3", data=root)
    )  # nothing improves: the first epoch is best
    assert (found["best"]["epoch"], found["last"]["epoch"]) == (1, 3)


@pytest.mark.slow
def test_resume_of_a_run_that_was_moved_keeps_its_best(run: Callable[..., Path], tmp_path: Path) -> None:
    run(name="first").rename(tmp_path / "moved")
    again = run(f"ckpt_path={tmp_path}/moved", "trainer.max_epochs=3", name="again")
    assert (again / "checkpoints" / "best.ckpt").exists()
    assert len(rows(again)) == 3


@pytest.mark.parametrize("word", ["hydra.mode=MULTIRUN", "++hydra.mode=MULTIRUN"])
def test_a_sweep_may_be_asked_for_in_the_configuration(
    word: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main([*TINY, f"data.root={photos}", "trainer.max_epochs=1", word])
    assert list(tmp_path.glob("runs/train/sweeps/*/0/metrics.json"))


def test_registered_family_is_a_name_on_the_command_line(run: Callable[..., Path]) -> None:
    class MyNetwork(torch.nn.Sequential):
        def __init__(self) -> None:
            conv, pool = torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1)
            super().__init__(conv, pool, torch.nn.Flatten(), torch.nn.Linear(4, 10))

    register(Family(("mynet",), head="3", feature_boundary="3", build=MyNetwork))
    try:
        folder = run("model=mynet")
        assert metrics(folder)["trainable_parameters"] == 15
        assert FineTuner.load_from_checkpoint(folder / "checkpoints" / "best.ckpt").classes == ["cat", "dog", "emu"]
    finally:
        del specs.FAMILIES["mynet"]


def test_bad_files_are_named_on_the_terminal_and_in_a_table(
    run: Callable[..., Path], make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images({"train": {"cat": 6, "dog": 6}, "val": {"cat": 2, "dog": 2}})
    (root / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 cut")
    folder = run(data=root)
    assert "broken.jpg: is not an image" in capsys.readouterr().out
    assert "broken.jpg" in (folder / "bad_files.csv").read_text()
    assert metrics(folder)["bad_files"] == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data.image_size=4"], "resnet18 needs images of at least 8 pixels, got data.image_size=4"),
        (
            ["model=maxvit_t", "data.image_size=64"],
            "maxvit_t takes images of 224 x 224 pixels only, got data.image_size=64",
        ),
        (["model=inception_v3", "data.image_size=128"], "inception_v3 needs images of at least 299 pixels"),
        (["optimizer.lr=1e30", "strategy=finetune"], "Try a smaller optimizer.lr"),
        (["+optimizer.nestrov=true"], "torch.optim.SGD: got an unexpected keyword argument 'nestrov'"),
        (["optimizer.momentum=0", "+optimizer.nesterov=true"], "optimizer: Nesterov momentum requires"),
        (["data.val=test"], "no split for data.val: 'test'"),
        (["trainer.devices=99"], "trainer.devices=99: that many processes do not fit on"),
        pytest.param(
            ["trainer.accelerator=cuda"],
            "trainer.accelerator=cuda: torch",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
)
def test_user_errors_are_explained(
    argv: list[str], message: str, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    shown = capsys.readouterr().err
    assert stop.value.code == 2, shown
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_sweep_runs_every_point_in_a_folder_of_its_own(run: Callable[..., Path], tmp_path: Path) -> None:
    run("-m", "seed=0,1", "optimizer.lr=1e-3,1e-2", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/sweep")
    found = [metrics(tmp_path / "sweep" / str(i)) for i in range(4)]
    assert len({m["command"] for m in found}) == len(found)  # each of its point alone
    assert not any(" -m " in m["command"].removeprefix("python -m ") for m in found)
    assert (tmp_path / "sweep" / "multirun.yaml").exists()


@pytest.mark.slow
def test_sweep_point_is_the_same_as_the_run_alone(run: Callable[..., Path], tmp_path: Path) -> None:
    run("-m", "optimizer.lr=1e-1,1e-3", "strategy=finetune", f"hydra.sweep.dir={tmp_path}/sweep")
    alone = run("optimizer.lr=1e-3", "strategy=finetune", name="alone")
    assert timeless(metrics(alone)) == timeless(metrics(tmp_path / "sweep" / "1"))


@pytest.mark.slow
def test_sweep_goes_on_after_a_failed_point_and_names_it(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run("-m", "data.image_size=32,4,40", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/sweep")
    assert stop.value.code == 2
    assert "job 1 (data.image_size=4) failed: resnet18 needs images" in capsys.readouterr().err
    assert metrics(tmp_path / "sweep" / "2")["n_train"] == 24


@pytest.mark.slow
def test_runs_started_in_the_same_second_get_folders_of_their_own(photos: Path, tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "finetune.train",
        *TINY,
        "data=imagefolder",
        f"data.root={photos}",
        "trainer.max_epochs=1",
        "report=false",
    ]
    both = [subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:
        process.communicate()
        assert process.returncode == 0
    assert len(list((tmp_path / "runs" / "train").glob("*/metrics.json"))) == 2


# --- real --------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
def test_real_squeezenet_learns_ants_and_bees(run: Callable[..., Path], shared: Path) -> None:
    weights = shared / "weights" / "squeezenet1_1-imagenet-features.pth"
    folder = run(
        "model=squeezenet1_1",
        f"model.weights={weights}",
        "data.image_size=null",
        "data=hymenoptera",
        "data.num_workers=auto",
        "trainer.max_epochs=5",
        data=shared / "data" / "hymenoptera_data",
    )
    found = metrics(folder)
    assert (found["n_train"], found["n_val"], found["trainable_parameters"]) == (244, 153, 1026)
    assert found["best"]["val/acc"] > 0.85
