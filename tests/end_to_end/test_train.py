"""Run `finetune.train` on tiny images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import Family, FineTuner, evaluate, register
from finetune.models import specs
from finetune.reporting.runs import read_run
from tests.end_to_end.helpers import TINY_RESNET, metrics_rows, read_metrics
from tests.helpers import REAL_TRUNKS, TINY


def test_run_folder_holds_what_is_promised(run_train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_train("report=true")
    for name in (
        ".hydra/config.yaml", ".hydra/overrides.yaml", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "metrics.csv", "metrics.json", "split.csv", "train.log", "plots/samples.png", "plots/curves.png",
        "plots/confusion_matrix.png",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    for picture in (folder / "plots").glob("*.png"):
        Image.open(picture).load()
    found = read_metrics(folder)
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
    table = metrics_rows(folder)
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


def test_checkpoints_are_the_best_and_the_last_epoch(run_train: Callable[..., Path]) -> None:
    folder = run_train("trainer.max_epochs=4", "strategy=finetune", "optimizer.lr=0.05")
    found = read_metrics(folder)
    best, last = (torch.load(folder / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("best", "last"))
    assert best["epoch"] == found["best"]["epoch"] - 1  # Lightning counts from 0
    assert last["epoch"] == 3
    assert found["best"]["val/acc"] == max(float(r["val/acc"]) for r in metrics_rows(folder))
    names = ["best.ckpt", "best.npz", "epochs.npz", "last.ckpt"]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == names
    module = FineTuner.load_from_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert module.classes == ["cat", "dog", "emu"]
    predictions = read_run(folder).predictions
    assert predictions is not None
    with np.load(folder / "checkpoints" / "epochs.npz", allow_pickle=False) as file:
        correct = np.unpackbits(file["correct"], axis=1, count=int(file["images"]))
        assert file["epochs"].tolist() == [1, 2, 3, 4]
    assert [row.mean() for row in correct] == pytest.approx([float(r["val/acc"]) for r in metrics_rows(folder)])
    assert correct[found["best"]["epoch"] - 1].tolist() == predictions.correct.tolist()
    assert 0 <= found["best_epoch_optimism"] < 1


@pytest.mark.slow
def test_same_seed_same_metrics_and_another_seed_others(run_train: Callable[..., Path]) -> None:
    def without_seconds(folder: Path) -> list[dict[str, str]]:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in metrics_rows(folder)
        ]

    argv = ["strategy=finetune", "data.augment=trivial"]
    first = without_seconds(run_train(*argv, name="a"))
    assert without_seconds(run_train(*argv, name="b")) == first
    assert without_seconds(run_train(*argv, "data.num_workers=2", name="c")) == first
    assert without_seconds(run_train(*argv, "seed=1", name="d")) != first


@pytest.mark.slow
def test_weights_from_our_own_checkpoint_whatever_its_classes(run_train: Callable[..., Path]) -> None:
    source = run_train(
        "data.classes=[cat,dog]", "strategy=finetune", "model.preprocess={mean:0.5,std:0.5}", name="source"
    )
    target = run_train(
        f"model.weights={source}/checkpoints/best.ckpt", "trainer.max_epochs=1", "data.image_size=null", name="target"
    )
    a, b = (torch.load(f / "checkpoints" / "best.ckpt", weights_only=True) for f in (source, target))
    assert torch.equal(a["state_dict"]["backbone.conv1.weight"], b["state_dict"]["backbone.conv1.weight"])
    assert b["state_dict"]["backbone.fc.weight"].shape == (3, 512)
    assert b["hyper_parameters"]["preprocess"] == a["hyper_parameters"]["preprocess"]  # 32 pixels and 0.5 come along
    assert "120 trunk tensors from" in read_metrics(target)["weights"]


@pytest.mark.slow
def test_run_folder_of_another_run_is_refused(
    run_train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_train()
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run_train()
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
def test_options_run(argv: list[str], run_train: Callable[..., Path]) -> None:
    folder = run_train(*argv)
    assert read_metrics(folder)["best"]["val/acc"] >= 0
    assert (folder / "plots" / "curves.png").exists() == ("report=true" in argv)


@pytest.mark.slow
def test_file_names_that_are_no_text_go_through(
    run_train: Callable[..., Path], make_images: Callable[..., Path]
) -> None:
    root = make_images({"train": {"cat": 6, "dog": 6}, "val": {"cat": 2, "dog": 2}})
    for split in ("train", "val"):
        (root / split / "cat" / "00.png").rename(root / split / "cat" / os.fsdecode(b"raw\xff.png"))
        (root / split / "dog" / os.fsdecode(b"bad\xfe.png")).write_text("not a picture")
    folder = run_train("trainer.max_epochs=1", data=root)
    assert b"train/cat/raw\xff.png,cat,train" in (folder / "split.csv").read_bytes()
    assert b"bad\xfe.png" in (folder / "bad_files.csv").read_bytes()
    evaluate.main([f"ckpt={folder}/checkpoints/best.ckpt", f"hydra.run.dir={folder}_e"])
    assert b"val/cat/raw\xff.png" in (folder.with_name("run_e") / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_early_stopping_stops(run_train: Callable[..., Path]) -> None:
    folder = run_train(
        "+callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=0", "trainer.max_epochs=9"
    )
    assert len(metrics_rows(folder)) == 2


def test_test_split_is_judged_once_with_the_best_checkpoint(
    run_train: Callable[..., Path], make_images: Callable[..., Path]
) -> None:
    root = make_images({s: {"cat": 6, "dog": 6} for s in ("train", "val", "test")})
    found = read_metrics(run_train(data=root))
    assert found["n_test"] == 12
    assert {"test/acc", "test/loss", "test/f1"} <= found["test"].keys()


@pytest.mark.slow
def test_judging_test_leaves_the_record_of_the_run_alone(
    run_train: Callable[..., Path], make_images: Callable[..., Path]
) -> None:
    root = make_images({s: {"cat": 6, "dog": 6} for s in ("train", "val", "test")})
    found = read_metrics(
        run_train("optimizer.lr=0", "trainer.max_epochs=3", data=root)
    )  # nothing improves: the first epoch is best
    assert (found["best"]["epoch"], found["last"]["epoch"]) == (1, 3)


def test_registered_family_is_a_name_on_the_command_line(run_train: Callable[..., Path]) -> None:
    class MyNetwork(torch.nn.Sequential):
        def __init__(self) -> None:
            conv, pool = torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1)
            super().__init__(conv, pool, torch.nn.Flatten(), torch.nn.Linear(4, 10))

    register(Family(("mynet",), head="3", feature_boundary="3", build=MyNetwork))
    try:
        folder = run_train("model=mynet")
        assert read_metrics(folder)["trainable_parameters"] == 15
        assert FineTuner.load_from_checkpoint(folder / "checkpoints" / "best.ckpt").classes == ["cat", "dog", "emu"]
    finally:
        del specs.FAMILIES["mynet"]


def test_bad_files_are_named_on_the_terminal_and_in_a_table(
    run_train: Callable[..., Path], make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images({"train": {"cat": 6, "dog": 6}, "val": {"cat": 2, "dog": 2}})
    (root / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 cut")
    folder = run_train(data=root)
    assert "broken.jpg: is not an image" in " ".join(capsys.readouterr().out.split())
    assert "broken.jpg" in (folder / "bad_files.csv").read_text()
    assert read_metrics(folder)["bad_files"] == 1


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
    argv: list[str], message: str, run_train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_train(*argv)
    shown = capsys.readouterr().err
    assert stop.value.code == 2, shown
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_runs_started_in_the_same_second_get_folders_of_their_own(photos: Path, tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "finetune.train",
        *TINY_RESNET,
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


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "head", "least"), [("squeezenet1_1", 1026, 0.85), ("timm:tf_efficientnet_lite0", 2562, 0.93)]
)
def test_real_trunks_learn_ants_and_bees(
    model: str, head: int, least: float, run_train: Callable[..., Path], shared: Path
) -> None:
    folder = run_train(
        f"model={model}",
        f"model.weights={shared / REAL_TRUNKS[model]}",
        "data.image_size=null",
        "data=hymenoptera",
        "data.num_workers=auto",
        "trainer.max_epochs=5",
        data=shared / "data" / "hymenoptera_data",
    )
    found = read_metrics(folder)
    assert (found["n_train"], found["n_val"], found["trainable_parameters"]) == (244, 153, head)
    assert found["best"]["val/acc"] > least


def test_a_run_without_an_end_says_so(
    command: Callable[..., tuple[Path, int]], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("train", *TINY, f"data.root={photos}", "trainer.max_epochs=-1", "+trainer.max_steps=3")
    assert "no end was given" in capsys.readouterr().out
