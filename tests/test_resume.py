"""Interrupted and continued: the same run, to the last bit."""

from __future__ import annotations

import csv
import errno
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Start, finished, wait_for

from finetune import FineTuner, train
from finetune.reporting import runs
from finetune.training import shutdown
from finetune.training.callbacks import SeedEveryBatch

Run = Callable[..., Path]


@pytest.fixture
def run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train in this process: the run's folder. `stop=(epoch, batch)` sends a signal in that batch."""
    monkeypatch.chdir(tmp_path)
    numbers = itertools.count()
    begin = SeedEveryBatch.on_train_batch_start

    def go(*argv: str, stop: tuple[int, int] | None = None, number: int = signal.SIGTERM, code: int = 0) -> Path:
        folder = tmp_path / f"run {next(numbers)}, of=many"

        def batch_start(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if stop == (trainer.current_epoch, batch_idx):
                os.kill(os.getpid(), number)
            begin(self, trainer, module, batch, batch_idx)

        monkeypatch.setattr(SeedEveryBatch, "on_train_batch_start", batch_start)
        words = [*TINY, f"data.root={photos}"] if not any(w.startswith("resume=") for w in argv) else []
        ended = 0
        try:
            train.main([*words, *argv, f"hydra.run.dir={folder}"])
        except SystemExit as end:
            ended = int(end.code or 0)
        assert ended == code
        return folder

    return go


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)
        ]


def stored(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(whole: Path, rest: Path) -> None:
    """Weights, states of optimizer, schedule and averages, the record, the best model, and its answers."""
    a, b = stored(whole), stored(rest)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state"):
        assert_same(a.get(key), b.get(key), key)
    assert rows(whole) == rows(rest)
    assert_same(stored(whole, "best")["state_dict"], stored(rest, "best")["state_dict"])
    there, here = runs.read_run(whole).predictions, runs.read_run(rest).predictions
    assert there is not None
    assert here is not None
    assert (there.probabilities == here.probabilities).all()


FULL = ("strategy=finetune", "data.augment=basic", "trainer.max_epochs=3")
CASES = {
    "workers": (*FULL, "data.num_workers=2"),
    "onecycle": (*FULL, "scheduler=onecycle"),
    "cosine": (*FULL, "scheduler=cosine", "scheduler.warmup=1"),
    "step": (*FULL, "scheduler=step", "scheduler.step_size=1"),
    "plateau": (*FULL, "scheduler=plateau", "scheduler.patience=0", "+scheduler.threshold=10"),
    "ema": (*FULL, "+callbacks=ema"),
    "accumulate": (*FULL, "trainer.accumulate_grad_batches=2", "data.batch_size=4"),
    "adamw": (*FULL, "optimizer=adamw", "optimizer.lr=0.001", "loss.mixup=0.2"),
    "lp_ft": ("strategy=lp_ft", "trainer.max_epochs=4"),  # frozen and on kept features, then all of it
    "features": ("strategy=feature_extract", "trainer.max_epochs=3"),
}
FAST = ("lp_ft",)  # on kept features, and on pixels after them


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else [pytest.mark.slow]) for c in CASES])
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(case: str, run: Run) -> None:
    argv = CASES[case]
    whole = run(*argv)
    places = [(1, 1), (1, 2)] if case in FAST else [(0, 0), (1, 1), (1, 2), (2, 0)]
    if case == "accumulate":
        places += [(1, 3), (1, 5)]
    for place in places:  # the last batch of an epoch: it stops in the validation
        half = run(*argv, stop=place, code=143)
        assert stored(half)["epoch"] == place[0]
        assert_same_run(whole, run(f"resume={half}"))


@pytest.mark.slow
def test_a_run_stopped_thrice_goes_on_bit_for_bit(run: Run) -> None:
    whole = run(*CASES["cosine"])
    first = run(*CASES["cosine"], stop=(0, 1), code=143)
    second = run(f"resume={first}", stop=(0, 2), code=130, number=signal.SIGINT)
    third = run(f"resume={second}", stop=(2, 1), code=143)
    assert_same_run(whole, run(f"resume={third}"))


# --- further than planned ----------------------------------------------------------------------------------------


def rates(folder: Path, group: str = "head") -> list[float]:
    return [float(row[f"lr/{group}"]) for row in rows(folder)]


def test_a_longer_run_has_the_rates_of_one_that_was_planned_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("scheduler=cosine", "optimizer.lr=0.01")
    longer = rates(run(*argv, "trainer.max_epochs=4"))
    short = run(*argv, "trainer.max_epochs=2")
    capsys.readouterr()
    rest = run(f"resume={short}", "trainer.max_epochs=4")
    assert rates(rest)[:2] == rates(short)
    assert rates(rest)[2:] == pytest.approx(longer[2:], rel=1e-6)
    said = " ".join(capsys.readouterr().out.split())
    assert "Schedule rescaled to 4 epochs from 2; rates: head 0.005 (was 0)" in said


@pytest.mark.slow
def test_what_has_begun_to_learn_does_not_stop_in_a_longer_run(run: Run) -> None:
    argv = ("strategy=lp_ft", "optimizer.lr=0.01")
    short = run(*argv, "trainer.max_epochs=4", stop=(3, 1), code=143)
    first = run(*argv, "trainer.max_epochs=4")
    begins = next(i for i, rate in enumerate(rates(first, "trunk")) if rate > 0)
    rest = run(f"resume={short}", "trainer.max_epochs=40", stop=(4, 2), code=143)
    again = run(f"resume={rest}", "trainer.max_epochs=60", stop=(6, 0), code=143)
    for folder in (rest, again):
        assert [rate > 0 for rate in rates(folder, "trunk")] == [i >= begins for i in range(len(rows(folder)))]
    assert len(rows(again)) == 6


def test_a_one_cycle_run_is_not_stretched(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    short = run("scheduler=onecycle")
    run(f"resume={short}", "trainer.max_epochs=4", code=2)
    assert "one-cycle schedule was made for 2 epochs and cannot be stretched" in capsys.readouterr().err


def test_resume_of_a_finished_run_says_so_and_ends_well(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = run()
    capsys.readouterr()
    again = run(f"resume={first}")
    assert "nothing is left to train" in " ".join(capsys.readouterr().out.split())
    assert rows(again) == rows(first)
    assert (again / "checkpoints" / "best.ckpt").read_bytes() == (first / "checkpoints" / "best.ckpt").read_bytes()


@pytest.mark.slow
def test_a_compiled_run_writes_and_reads_the_checkpoints_of_one_that_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a back end that changes no number."""
    compile_, backends = torch.nn.Module.compile, []

    def eagerly(self: torch.nn.Module) -> None:
        backends.append("eager")
        compile_(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eagerly)
    argv = ("strategy=finetune", "data.augment=basic")
    plain = run(*argv)
    compiled = run(*argv, "trainer.compile=true", stop=(0, 2), code=143)
    assert stored(compiled)["state_dict"].keys() == stored(plain)["state_dict"].keys()
    assert_same_run(plain, run(f"resume={compiled}", "trainer.compile=false"))
    half = run(*argv, stop=(0, 2), code=143)
    assert_same_run(plain, run(f"resume={half}", "trainer.compile=true"))
    assert len(backends) == 2


# --- another run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((), ("monitor=val/loss",), "its monitor is val/acc, this run's is val/loss"),
        ((), ("optimizer=adamw",), "its optimizer._target_ is torch.optim.SGD, this run's is torch.optim.AdamW"),
        ((), ("+data.per_class=4",), "its data are not these (other training images or labels)"),
        ((), ("data.root=OTHER",), "of the val images 12 gone, val/cat/00.png for one and 3 new, val/cat/other.png"),
        (("+callbacks=ema",), ("~callbacks",), "it keeps an average of the weights; give +callbacks=ema"),
        ((), ("+callbacks=ema",), "it keeps no average of the weights"),
        (
            (),
            ("scheduler=step", "strategy=finetune"),
            "its strategy is feature_extract, this run's is finetune; its sched",
        ),
    ],
)
def test_resume_of_another_run_names_all_that_differs(
    first: tuple[str, ...],
    second: tuple[str, ...],
    message: str,
    run: Run,
    make_images: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_images(
        {"train": dict.fromkeys(("cat", "dog", "emu"), 8), "val": dict.fromkeys(("cat", "dog", "emu"), 1)}
    )
    for path in other.glob("val/*/00.png"):
        path.rename(path.with_name("other.png"))
    before = run(*first, "trainer.max_epochs=1")
    words = [word.replace("OTHER", str(other)) for word in second if word != "~callbacks"]
    if "~callbacks" in second:
        words = [f"ckpt_path={before}", *words]
        run("trainer.max_epochs=1", *words, code=2)
    else:
        run(f"resume={before}", *(word.replace("+data", "data") for word in words), code=2)
    assert message in capsys.readouterr().err


def test_resume_says_what_counts_of_what_changed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = run("optimizer.lr=0.01")
    run(f"resume={first}", "optimizer.lr=0.5", "data.batch_size=4", "trainer.max_epochs=3")
    said = " ".join(capsys.readouterr().out.split())
    assert "goes on with what its checkpoint says: optimizer.lr stays 0.01" in said
    assert "from here on data.batch_size=4 (was 8): not the run that it would have been" in said


def test_resume_repeats_the_choices_from_any_folder(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(photos)
    first = run("data.root=here", "seed=7", "trainer.max_epochs=1")
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    again = run(f"resume={first}", "trainer.max_epochs=2")
    assert stored(again)["finetune"]["config"]["seed"] == 7
    assert len(rows(again)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resume=nowhere",), "resume=nowhere: there is no run in it"),
        (("resume=x", "-m", "seed=0,1"), "resume= goes on with one run"),
        (("ckpt_path=.",), "a folder without checkpoints/last.ckpt"),
    ],
)
def test_resume_of_what_is_no_run_is_an_error(
    words: tuple[str, ...], message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*words, code=2)
    assert message in capsys.readouterr().err


# --- what goes wrong in the middle -------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_the_files_and_keeps_what_was_good(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    keys: list[list[str]] = []
    begin = SeedEveryBatch.on_train_batch_start

    def poison(self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        begin(self, trainer, module, batch, batch_idx)
        if (trainer.current_epoch, batch_idx) == (1, 1):
            module.head.weight.data[0] = float("nan")
            keys.append(trainer.datamodule.batch_keys(batch_idx))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "finetune.cli.factories.SeedEveryBatch", type("Poison", (SeedEveryBatch,), {"on_train_batch_start": poison})
        )
        folder = run("strategy=finetune", code=2)
    error = capsys.readouterr().err
    assert "The loss is nan in epoch 2, batch 2 (rates: head 0.01, trunk 0.01), with the images train/" in error
    assert len(keys[0]) == 8
    assert all(key in error for key in keys[0])
    assert stored(folder)["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in stored(folder)["state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def poison(self: Any, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            module.head.weight.data[0] = float("inf")

    monkeypatch.setattr(SeedEveryBatch, "on_train_epoch_end", poison)
    folder = run("strategy=finetune", code=2)
    assert "After epoch 2 backbone.classifier.1.weight is not finite" in capsys.readouterr().err
    assert stored(folder)["epoch"] == 0


def test_a_full_disk_ends_the_run_and_leaves_its_checkpoints_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, saved = os.fsync, []

    def full(number: int) -> None:
        if "/.last.ckpt." in os.readlink(f"/proc/self/fd/{number}"):
            saved.append(number)
            if len(saved) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    folder = run(code=2)
    error = " ".join(capsys.readouterr().err.split())
    assert "last.ckpt: No space left on device:" in error
    assert "MiB are free in" in error
    assert "what was there before is whole" in error
    assert stored(folder)["epoch"] == 0
    assert not list((folder / "checkpoints").glob("*.tmp"))


# --- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_its_code_and_a_way_to_go_on(
    number: int, workers: int, start: Start, tmp_path: Path
) -> None:
    """As a terminal and a batch system send it: to the whole group, processes that decode included."""
    words = ("trainer.max_epochs=5000", "strategy=finetune", "data.augment=basic", f"data.num_workers={workers}")
    process = start(*words, f"hydra.run.dir={tmp_path}/out")
    wait_for(tmp_path / "out" / "checkpoints" / "last.ckpt", process)
    os.killpg(process.pid, number)
    errors = finished(process, 128 + number, timeout=60)
    assert f"resume={tmp_path / 'out'}" in errors
    assert "Traceback" not in errors
    assert stored(tmp_path / "out")["epoch"] >= 0


def test_a_power_cut_in_a_long_epoch_costs_what_was_not_saved_yet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("strategy=finetune", "data.augment=basic")
    whole, real = run(*argv), FineTuner.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (1, 2):
            raise ZeroDivisionError("the light goes out")
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "SAVE_EVERY_S", 0.0)
        patch.setattr(FineTuner, "training_step", step)
        half = run(*argv, code=1)
    assert stored(half)["global_step"] == 5  # of the three of each epoch, two of the second
    assert_same_run(whole, run(f"resume={half}"))


def test_ctrl_c_twice_stops_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what was saved before it: the batch is not waited for."""
    finished: list[int] = []
    begin, real = SeedEveryBatch.on_train_batch_start, FineTuner.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            finished.append(batch_idx)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", step)
    monkeypatch.setattr(SeedEveryBatch, "on_train_batch_start", begin)
    folder = run(code=130)
    assert finished == []
    error = capsys.readouterr().err
    assert "what was saved last is kept" in error
    assert "resume=" in error
    assert stored(folder)["epoch"] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_was_started_to_ignore_ctrl_c_ignores_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As shells start what they put in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        folder = run(stop=(0, 1), number=signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stored(folder)["epoch"] == 1


def test_sigterm_in_the_test_at_the_end_says_how_to_go_on(
    run: Run, make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_images({name: {"cat": 4, "dog": 4} for name in ("train", "val", "test")})
    monkeypatch.setattr(FineTuner, "test_step", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    run(f"data.root={data}", "trainer.max_epochs=1", code=143)
    error = capsys.readouterr().err
    assert "what was saved last is kept" in error
    assert "Traceback" not in error


def test_sigterm_before_the_first_epoch_ends_with_143(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def setup(self: Any, trainer: Any, module: Any, stage: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SeedEveryBatch, "setup", setup)
    run(code=143)
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_killed_at_any_moment_the_checkpoints_can_be_read_and_the_end_is_the_same(
    run: Run, start: Start, tmp_path: Path
) -> None:
    """`kill -9`, twenty times: at moments drawn with a seed, on the way through one and the same run."""
    argv = ("strategy=finetune", "data.augment=basic", "trainer.max_epochs=100", "scheduler=cosine")
    whole = run(*argv)
    draw, kills = random.Random(0), 0
    last: Path | None = None
    for attempt in itertools.count():
        folder = tmp_path / f"killed_{attempt}"
        words = () if last is None else (f"ckpt_path={last}",)
        process = start(*argv, *words, f"hydra.run.dir={folder}")
        if kills < 20:
            while not (folder / "metrics.csv").exists() and process.poll() is None:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.5))
            process.kill()
            kills += 1
        process.communicate()
        for name in ("last", "best"):
            if (folder / "checkpoints" / f"{name}.ckpt").exists():
                stored(folder, name)
        last = folder if (folder / "checkpoints" / "last.ckpt").exists() else last
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills == 20
    assert_same_run(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_requeued_job_of_slurm_goes_on_in_its_folder(told: bool, run: Run, start: Start, tmp_path: Path) -> None:
    """From what it saved when it was told, or from its last epoch where a machine failed without a word."""
    argv = ("strategy=finetune", "data.augment=basic", "trainer.max_epochs=60")
    whole = run(*argv)
    (tmp_path / "bin").mkdir()
    control = tmp_path / "bin" / "scontrol"
    control.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n")
    control.chmod(0o755)
    slurm = {"JOB_ID": "42", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0",
             "NODELIST": "localhost", "JOB_NODELIST": "localhost", "NTASKS_PER_NODE": "1", "JOB_NUM_NODES": "1"}  # fmt: skip
    environment = {**os.environ, **{f"SLURM_{key}": value for key, value in slurm.items()}}
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
    folder = tmp_path / "runs" / "train" / "slurm_42"
    first = start(*argv, env=environment)
    wait_for(folder / "checkpoints" / "last.ckpt", first)
    first.send_signal(signal.SIGUSR1)
    wait_for(tmp_path / "asked", first)
    first.kill()
    errors = first.communicate()[1]
    if not told:
        for path in folder.glob("hpc_ckpt_*"):
            path.unlink()
    assert (tmp_path / "asked").read_text() == "requeue 42\n", errors
    assert (folder / "hpc_ckpt_1.ckpt").exists() == told
    environment["SLURM_RESTART_COUNT"] = "1"
    finished(start(*argv, env=environment))
    assert_same_run(whole, folder)
    assert len(list((tmp_path / "runs" / "train").iterdir())) == 1
    finished(start(*argv, "seed=1", "trainer.max_epochs=1", env=environment))  # a second command of the same job
    assert sorted(path.name for path in (tmp_path / "runs" / "train").iterdir()) == ["slurm_42", "slurm_42_1"]


# --- records from strangers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            "- +hydra.callbacks.x._target_=os.system",
            "holds '+hydra.callbacks.x._target_=os.system', which is no choice",
        ),
        ("- --config-dir=/tmp", "which is no choice of a run"),
        ("- hydra/launcher=joblib", "which is no choice of a run"),
        ("{", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_resume_runs_nothing_that_a_record_says(
    record: str, message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(trained, folder)
    (folder / ".hydra" / "overrides.yaml").write_text(record)
    with pytest.raises(SystemExit) as stop:
        train.main([f"resume={folder}"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def changed_checkpoint(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = stored(folder)
    change(content)
    torch.save(content, folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(loops=3),
        lambda content: content["loops"].clear(),
        lambda content: content.update(lr_schedulers=[5]),
        lambda content: content["loops"]["fit_loop"]["epoch_progress"].update(current=None),
        lambda content: content["hyper_parameters"].update(strategy={"groups": 5}),
    ],
)
def test_resume_from_a_checkpoint_that_makes_no_sense_is_refused(
    change: Callable[[dict[str, Any]], Any], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("trainer.max_epochs=1")
    changed_checkpoint(first, change)
    run(f"resume={first}", "trainer.max_epochs=2", code=2)
    assert "last.ckpt" in capsys.readouterr().err


def test_resume_deletes_and_copies_nothing_that_a_checkpoint_names(run: Run, tmp_path: Path) -> None:
    """Lightning would remove the file that it takes for the one before, whatever the checkpoint calls so."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "photo").write_text("dear")
    first = run("trainer.max_epochs=1")

    def mean(content: dict[str, Any]) -> None:
        for name, state in content["callbacks"].items():
            if "Checkpoint" in name and "best_model_path" in state:
                state.update(best_model_path=f"local://{tmp_path}/precious", dirpath=str(tmp_path / "precious"))

    changed_checkpoint(first, mean)
    again = run(f"resume={first}", "trainer.max_epochs=3")
    assert (tmp_path / "precious" / "photo").read_text() == "dear"
    assert stored(again)["epoch"] == 2


def test_a_resumed_run_has_something_to_go_on_with_from_its_beginning(run: Run) -> None:
    first = run("trainer.max_epochs=1")
    again = run(f"resume={first}")  # nothing is left to train
    assert len(rows(run(f"resume={again}", "trainer.max_epochs=2"))) == 2


def test_a_length_of_the_schedule_that_was_given_stays(run: Run) -> None:
    argv = ("scheduler=cosine", "+scheduler.T_max=4", "optimizer.lr=0.01")
    whole, short = run(*argv, "trainer.max_epochs=3"), run(*argv, "trainer.max_epochs=1")
    assert rates(run(f"resume={short}", "trainer.max_epochs=3")) == rates(whole)
