"""Train in several processes: the same numbers as one, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import load
from finetune.reporting import runs
from tests.end_to_end.helpers import finished, metrics_rows, wait_for
from tests.helpers import Start

pytestmark = pytest.mark.slow

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=4", "strategy=finetune")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return found


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(line) for line in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def runs_still(pid: int) -> bool:
    """Whether a process is there, and not merely waiting for somebody to ask how it ended."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


HALF_FROZEN = "strategy.groups=[{match:'@head'},{match:'@norm',start:null},{match:'.*',lr:0.1}]"
"""Everything learns but BatchNorm, whose statistics are those of the pretrained network."""


@pytest.mark.parametrize(
    "argv",
    [
        ["strategy=feature_extract"],
        ["strategy=finetune", HALF_FROZEN],
        ["strategy=finetune", HALF_FROZEN, "loss.class_weights=auto", "loss.label_smoothing=0.1"],
        ["strategy=feature_extract", "trainer.accumulate_grad_batches=2"],
        ["strategy=finetune", HALF_FROZEN, "+callbacks=l2_sp", "callbacks.l2_sp.alpha=1"],
        ["strategy=finetune", HALF_FROZEN, "optimizer=sam", "optimizer.rho=0.5"],
        ["strategy=finetune", HALF_FROZEN, "+callbacks=ema", "monitor=val/loss"],
        ["strategy=finetune", HALF_FROZEN, "+callbacks=restarts", "callbacks.restarts.epochs=1"],
    ],
)
def test_two_processes_give_the_numbers_of_one(
    argv: list[str], start: Start, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    """On the same global batch, where no BatchNorm and no dropout looks at a process's share of it.

    The last batch is 3 images of the one and 2 of the other.
    """
    data = make_images({"train": {"cat": 8, "dog": 5, "emu": 8}, "val": {"cat": 3, "dog": 1, "emu": 3}})
    same = ["model=resnet18", "trainer.precision=64-true", "trainer.max_epochs=3", f"data.root={data}", *argv]
    both = [start(*same, "data.batch_size=8", "hydra.run.dir=one"), start(*TWO, *same, "hydra.run.dir=two")]
    for process in both:
        finished(process)
    one, two = metrics_rows(tmp_path / "one"), metrics_rows(tmp_path / "two")
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        numbers = [key for key in a if key not in ("seconds", "images_per_second") and a[key] != ""]
        assert [float(b[key]) for key in numbers] == pytest.approx([float(a[key]) for key in numbers], abs=1e-6)
    a_weights, b_weights = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(a_weights[key], b_weights[key], rtol=0, atol=1e-12) for key in a_weights)


@pytest.mark.parametrize(
    "argv",
    [
        ["strategy=finetune"],
        ["strategy=gradual"],  # what learns late
        ["strategy=lp_ft"],  # kept features, then pixels
        ["strategy=lp_ft", "data.augment=light", "+callbacks=restarts", "callbacks.restarts.epochs=1"],
        ["strategy=finetune", "monitor=train/loss", "scheduler=plateau"],  # all look at what all have counted
        ["strategy=finetune", "model=googlenet"],  # auxiliary heads
        ["strategy=finetune", "data.per_class=7", "+callbacks=ema"],  # 21 images: a last batch of 3 and 2
    ],
)
def test_two_processes_end_with_identical_weights(argv: list[str], start: Start, photos: Path, tmp_path: Path) -> None:
    finished(start(*TWO, "trainer.max_epochs=3", "trainer.precision=32-true", *argv, "hydra.run.dir=out"))
    # it has compared the weights of all processes at its end
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert sum(map(sum, found["confusion_matrix"])) == 12  # each image once
    assert len(metrics_rows(tmp_path / "out")) == 3
    left = runs.read_run(tmp_path / "out")
    assert left.predictions is not None  # in the order of split.csv, whichever process had the image
    assert [Path(key).parts[1] for key in left.val_images] == [
        left.metrics["classes"][i] for i in left.predictions.labels
    ]
    model = load(left.best_checkpoint, device="cpu", precision="32-true")
    again = model.probabilities([photos / key for key in left.val_images]).numpy()
    assert abs(again - left.predictions.probabilities).max() < 1e-5


def test_validation_over_processes_counts_five_images_once(start: Start, make_images: Any, tmp_path: Path) -> None:
    data = make_images({"train": {"cat": 4, "dog": 4}, "val": {"cat": 3, "dog": 2}})
    finished(start(*TWO, "data.batch_size=2", f"data.root={data}", "trainer.max_epochs=1", "hydra.run.dir=out"))
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [sum(row) for row in found["confusion_matrix"]] == [3, 2]
    right = sum(row[i] for i, row in enumerate(found["confusion_matrix"]))
    assert found["best"]["val/acc"] == pytest.approx(right / 5)


def test_a_run_over_processes_goes_on_behind_an_unfreezing(start: Start, tmp_path: Path) -> None:
    """What has begun to learn since the processes were joined is learned together."""
    argv = (*TWO, "strategy=gradual", "trainer.max_epochs=12", "data.augment=none")
    finished(start(*argv, "hydra.run.dir=whole"))
    process = start(*argv, "trainer.max_epochs=12", "hydra.run.dir=half")
    wait_for(tmp_path / "half" / "metrics.csv", process)
    while len(metrics_rows(tmp_path / "half")) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    finished(process, 143)
    finished(start("resume=half", "hydra.run.dir=rest"))
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "rest")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("who", ["all", "first", "second"])
def test_sigterm_to_any_process_ends_all_and_the_run_goes_on(who: str, start: Start, tmp_path: Path) -> None:
    argv = (*TWO, "trainer.max_epochs=60", "data.augment=basic")
    process = start(*argv, "hydra.run.dir=half")
    wait_for(tmp_path / "half" / "checkpoints" / "last.ckpt", process)
    others = children(process)
    if who == "all":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid if who == "first" else others[0], signal.SIGTERM)
    errors = finished(process, 143, timeout=10)
    assert errors.count("interrupted; all up to here is saved") == 1
    deadline = time.monotonic() + 5
    while any(map(runs_still, others)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs_still, others))
    if who != "first":
        return
    finished(start("resume=half", "hydra.run.dir=rest"))
    finished(start(*argv, "hydra.run.dir=whole"))
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "rest")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(metrics_rows(tmp_path / "rest")) == 60


@pytest.mark.parametrize("who", ["first", "second"])
def test_a_process_that_is_killed_ends_the_others(who: str, start: Start, tmp_path: Path) -> None:
    process = start(*TWO, "trainer.max_epochs=500", "hydra.run.dir=out")
    wait_for(tmp_path / "out" / "checkpoints" / "last.ckpt", process)
    others = children(process)
    os.kill(process.pid if who == "first" else others[0], signal.SIGKILL)
    errors = finished(process, -signal.SIGKILL if who == "first" else 1, timeout=15)
    assert "another process of this run has ended or does not answer" in errors
    assert "Traceback" not in errors
    assert weights(tmp_path / "out")


def test_a_run_has_left_its_group_before_python_ends(start: Start, tmp_path: Path) -> None:
    """Else a thread of gloo may abort the process then, with exit code 134."""
    (tmp_path / "witness.py").write_text(
        "import atexit, sys, torch\n"
        "from lightning.pytorch import Callback\n"
        "class Witness(Callback):\n"
        "    def on_train_end(self, trainer, module):\n"
        "        assert torch.distributed.is_initialized()\n"
        "        atexit.register(lambda: print('in a group:', torch.distributed.is_initialized(), file=sys.stderr))\n"
    )
    environment = {**os.environ, "FINETUNE_ALLOW": "witness", "PYTHONPATH": str(tmp_path)}
    errors = finished(start(*TWO, "hydra.run.dir=out", "+callbacks.w._target_=witness.Witness", env=environment))
    assert errors.count("in a group: False") == 2


def test_an_error_in_one_process_is_told_and_ends_the_others(start: Start, tmp_path: Path) -> None:
    (tmp_path / "breaker.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Breaker(Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, batch_idx):\n"
        "        if trainer.global_rank == 1 and trainer.current_epoch == 1:\n"
        "            raise RuntimeError('the second process is out of luck')\n"
    )
    environment = {**os.environ, "FINETUNE_ALLOW": "breaker", "PYTHONPATH": str(tmp_path)}
    process = start(
        *TWO, "trainer.max_epochs=500", "hydra.run.dir=out", "+callbacks.b._target_=breaker.Breaker", env=environment
    )
    errors = finished(process, 1, timeout=60)
    assert "the second process is out of luck" in errors
    assert "another process of this run has ended" in errors
    assert "the second process is out of luck" in (tmp_path / "out" / "train_ddp_process_1.log").read_text()


def test_torchrun_over_two_nodes_is_one_run(start: Start, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (*TWO, "trainer.devices=1", "trainer.num_nodes=2", "trainer.max_epochs=2")
    nodes = [
        start(*words, module=("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={n}",
                              "--master_addr=127.0.0.1", f"--master_port={port}", "-m"))
        for n in (0, 1)
    ]  # fmt: skip
    for node in nodes:
        finished(node)
    found = list((tmp_path / "runs" / "train").glob("*/metrics.json"))
    assert len(found) == 1
    assert sum(map(sum, json.loads(found[0].read_text())["confusion_matrix"])) == 12
    assert len(metrics_rows(found[0].parent)) == 2
