"""Continue runs: to the last bit what they would have been."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import train
from finetune.cli.groups import group_options
from finetune.reporting import runs
from tests.end_to_end.helpers import (
    RunUntil,
    assert_same_run,
    metrics_rows,
    read_metrics,
    read_run_checkpoint,
    timeless,
    timeless_rows,
)

FULL = ("strategy=finetune", "data.augment=basic", "trainer.max_epochs=3")


CASES = {
    "workers": (*FULL, "data.num_workers=2"),
    "onecycle": (*FULL, "scheduler=onecycle"),
    "cosine": (*FULL, "scheduler=cosine", "scheduler.warmup=1"),
    "step": (*FULL, "scheduler=step", "scheduler.step_size=1"),
    "plateau": (*FULL, "scheduler=plateau", "scheduler.patience=0", "+scheduler.threshold=10"),
    "ema": (*FULL, "+callbacks=ema"),
    "swa": (*FULL, "+callbacks=swa", "callbacks.swa.start=1"),
    "restarts": (*FULL, "+callbacks=restarts", "callbacks.restarts.epochs=2"),
    "good": ("strategy=lp_ft", "trainer.max_epochs=4", "data.augment=light", "+callbacks=ema"),
    "l2_sp": (*FULL, "+callbacks=l2_sp", "callbacks.l2_sp.alpha=1"),
    "accumulate": (*FULL, "trainer.accumulate_grad_batches=2", "data.batch_size=4"),
    "adamw": (*FULL, "optimizer=adamw", "optimizer.lr=0.001", "loss.mixup=0.2"),
    "lp_ft": ("strategy=lp_ft", "trainer.max_epochs=4"),  # frozen and on kept features, then all of it
    "features": ("strategy=feature_extract", "trainer.max_epochs=3"),
    # of three classes, 5, 5 and 6 images are left: an epoch repeats one
    "sampler": (*FULL, "data.folds=3", "data.sampler=balanced", "data.batch_size=6"),
}


FAST = ("lp_ft",)  # on kept features, and on pixels after them


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else [pytest.mark.slow]) for c in CASES])
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(case: str, run_until: RunUntil) -> None:
    argv = CASES[case]
    whole = run_until(*argv)
    places = [(1, 1), (1, 2)] if case in FAST else [(0, 0), (1, 1), (1, 2), (2, 0)]
    if case == "accumulate":
        places += [(1, 3), (1, 5)]
    for place in places:  # the last batch of an epoch: it stops in the validation
        half = run_until(*argv, stop=place, code=143)
        assert read_run_checkpoint(half)["epoch"] == place[0]
        assert_same_run(whole, run_until(f"resume={half}"))


@pytest.mark.parametrize("place", [(0, 0), (0, 2)])
def test_a_run_of_a_solved_head_goes_on_bit_for_bit(place: tuple[int, int], run_until: RunUntil) -> None:
    whole = run_until("strategy=linear_probe")
    assert len(timeless_rows(whole)) == 1
    half = run_until("strategy=linear_probe", stop=place, code=143)
    assert_same_run(whole, run_until(f"resume={half}"))


@pytest.mark.slow
def test_a_run_stopped_thrice_goes_on_bit_for_bit(run_until: RunUntil) -> None:
    whole = run_until(*CASES["cosine"])
    first = run_until(*CASES["cosine"], stop=(0, 1), code=143)
    second = run_until(f"resume={first}", stop=(0, 2), code=130, number=signal.SIGINT)
    third = run_until(f"resume={second}", stop=(2, 1), code=143)
    assert_same_run(whole, run_until(f"resume={third}"))


def rates(folder: Path, group: str = "head") -> list[float]:
    return [float(row[f"lr/{group}"]) for row in timeless_rows(folder)]


def test_a_longer_run_has_the_rates_of_one_that_was_planned_so(
    run_until: RunUntil, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("scheduler=cosine", "optimizer.lr=0.01")
    longer = rates(run_until(*argv, "trainer.max_epochs=4"))
    short = run_until(*argv, "trainer.max_epochs=2")
    capsys.readouterr()
    rest = run_until(f"resume={short}", "trainer.max_epochs=4")
    assert rates(rest)[:2] == rates(short)
    assert rates(rest)[2:] == pytest.approx(longer[2:], rel=1e-6)
    said = " ".join(capsys.readouterr().out.split())
    assert "Schedule rescaled to 4 epochs from 2, 6 steps left; rates: head 0.005 (was 0)" in said


@pytest.mark.slow
def test_what_has_begun_to_learn_does_not_stop_in_a_longer_run(run_until: RunUntil) -> None:
    argv = ("strategy=lp_ft", "optimizer.lr=0.01")
    short = run_until(*argv, "trainer.max_epochs=4", stop=(3, 1), code=143)
    first = run_until(*argv, "trainer.max_epochs=4")
    begins = next(i for i, rate in enumerate(rates(first, "trunk")) if rate > 0)
    rest = run_until(f"resume={short}", "trainer.max_epochs=40", stop=(4, 2), code=143)
    again = run_until(f"resume={rest}", "trainer.max_epochs=60", stop=(6, 0), code=143)
    for folder in (rest, again):
        assert [rate > 0 for rate in rates(folder, "trunk")] == [i >= begins for i in range(len(timeless_rows(folder)))]
    assert len(timeless_rows(again)) == 6


def test_a_one_cycle_run_is_not_stretched(run_until: RunUntil, capsys: pytest.CaptureFixture[str]) -> None:
    short = run_until("scheduler=onecycle")
    run_until(f"resume={short}", "trainer.max_epochs=4", code=2)
    assert "one-cycle schedule was made for 2 epochs and cannot be stretched" in capsys.readouterr().err


def test_resume_of_a_finished_run_says_so_and_ends_well(
    run_until: RunUntil, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_until()
    capsys.readouterr()
    again = run_until(f"resume={first}")
    assert "nothing is left to train" in " ".join(capsys.readouterr().out.split())
    assert timeless_rows(again) == timeless_rows(first)
    assert (again / "checkpoints" / "best.ckpt").read_bytes() == (first / "checkpoints" / "best.ckpt").read_bytes()


@pytest.mark.slow
def test_a_compiled_run_writes_and_reads_the_checkpoints_of_one_that_is_not(
    run_until: RunUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a back end that changes no number."""
    compile_, backends = torch.nn.Module.compile, []

    def eagerly(self: torch.nn.Module) -> None:
        backends.append("eager")
        compile_(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eagerly)
    argv = ("strategy=finetune", "data.augment=basic")
    plain = run_until(*argv)
    compiled = run_until(*argv, "trainer.compile=true", stop=(0, 2), code=143)
    assert read_run_checkpoint(compiled)["state_dict"].keys() == read_run_checkpoint(plain)["state_dict"].keys()
    assert_same_run(plain, run_until(f"resume={compiled}", "trainer.compile=false"))
    half = run_until(*argv, stop=(0, 2), code=143)
    assert_same_run(plain, run_until(f"resume={half}", "trainer.compile=true"))
    assert len(backends) == 2


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
    run_until: RunUntil,
    make_images: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_images(
        {"train": dict.fromkeys(("cat", "dog", "emu"), 8), "val": dict.fromkeys(("cat", "dog", "emu"), 1)}
    )
    for path in other.glob("val/*/00.png"):
        path.rename(path.with_name("other.png"))
    before = run_until(*first, "trainer.max_epochs=1")
    words = [word.replace("OTHER", str(other)) for word in second if word != "~callbacks"]
    if "~callbacks" in second:
        words = [f"ckpt_path={before}", *words]
        run_until("trainer.max_epochs=1", *words, code=2)
    else:
        run_until(f"resume={before}", *(word.replace("+data", "data") for word in words), code=2)
    assert message in capsys.readouterr().err


def test_resume_says_what_counts_of_what_changed(run_until: RunUntil, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_until("optimizer.lr=0.01")
    run_until(f"resume={first}", "optimizer.lr=0.5", "data.batch_size=4", "trainer.max_epochs=3")
    said = " ".join(capsys.readouterr().out.split())
    assert "goes on with what its checkpoint says: optimizer.lr stays 0.01" in said
    assert "from here on data.batch_size=4 (was 8): not the run that it would have been" in said


def test_resume_repeats_the_choices_from_any_folder(run_until: RunUntil, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(photos)
    first = run_until("data.root=here", "seed=7", "trainer.max_epochs=1")
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    again = run_until(f"resume={first}", "trainer.max_epochs=2")
    assert read_run_checkpoint(again)["finetune"]["config"]["seed"] == 7
    assert len(timeless_rows(again)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resume=nowhere",), "resume=nowhere: there is no run in it"),
        (("resume=x", "-m", "seed=0,1"), "resume=x goes on with one run"),
        (("ckpt_path=.",), "a folder without checkpoints/last.ckpt"),
    ],
)
def test_resume_of_what_is_no_run_is_an_error(
    words: tuple[str, ...], message: str, run_until: RunUntil, capsys: pytest.CaptureFixture[str]
) -> None:
    run_until(*words, code=2)
    assert message in capsys.readouterr().err


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
    content = read_run_checkpoint(folder)
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
    change: Callable[[dict[str, Any]], Any], run_until: RunUntil, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_until("trainer.max_epochs=1")
    changed_checkpoint(first, change)
    run_until(f"resume={first}", "trainer.max_epochs=2", code=2)
    assert "last.ckpt" in capsys.readouterr().err


def test_resume_deletes_and_copies_nothing_that_a_checkpoint_names(run_until: RunUntil, tmp_path: Path) -> None:
    """Lightning would remove the file that it takes for the one before, whatever the checkpoint calls so."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "photo").write_text("dear")
    first = run_until("trainer.max_epochs=1")

    def mean(content: dict[str, Any]) -> None:
        for name, state in content["callbacks"].items():
            if "Checkpoint" in name and "best_model_path" in state:
                state.update(best_model_path=f"local://{tmp_path}/precious", dirpath=str(tmp_path / "precious"))

    changed_checkpoint(first, mean)
    again = run_until(f"resume={first}", "trainer.max_epochs=3")
    assert (tmp_path / "precious" / "photo").read_text() == "dear"
    assert read_run_checkpoint(again)["epoch"] == 2


def test_a_resumed_run_has_something_to_go_on_with_from_its_beginning(run_until: RunUntil) -> None:
    first = run_until("trainer.max_epochs=1")
    again = run_until(f"resume={first}")  # nothing is left to train
    assert len(timeless_rows(run_until(f"resume={again}", "trainer.max_epochs=2"))) == 2


def test_a_length_of_the_schedule_that_was_given_stays(run_until: RunUntil) -> None:
    argv = ("scheduler=cosine", "+scheduler.T_max=4", "optimizer.lr=0.01")
    whole, short = run_until(*argv, "trainer.max_epochs=3"), run_until(*argv, "trainer.max_epochs=1")
    assert rates(run_until(f"resume={short}", "trainer.max_epochs=3")) == rates(whole)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(s, marks=[] if s == "gradual" else [pytest.mark.slow])
        for s in group_options("strategy")
        if s != "linear_probe"  # which has one epoch
    ],
)
def test_resume_continues_where_the_run_stopped(strategy: str, run_train: Callable[..., Path]) -> None:
    argv = [f"strategy={strategy}", "scheduler=constant", "model=squeezenet1_1", "optimizer.lr=0.01"]
    whole = run_train(*argv, "trainer.max_epochs=4", name="whole")
    # a share of the run as start depends on its length, so the first half is a run of four epochs that was stopped
    half = run_train(*argv, "trainer.max_epochs=4", "+trainer.max_steps=6", name="half")
    assert read_metrics(half)["last"]["epoch"] == 2
    rest = run_train(*argv, "trainer.max_epochs=4", f"ckpt_path={half}/checkpoints/last.ckpt", name="rest")
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (whole, rest))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [r["epoch"] for r in metrics_rows(rest)] == ["1", "2", "3", "4"]
    assert timeless(read_metrics(rest)) == timeless(read_metrics(whole))
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
    argv: list[str], message: str, run_train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_train("trainer.max_epochs=1", name="first")
    with pytest.raises(SystemExit) as stop:
        run_train(f"ckpt_path={first}", *argv, name="second")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_resume_from_weights_or_nothing_is_refused(
    run_train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    for path, message in (
        ("weights.ckpt", "start from it with model.weights="),
        ("nothing.ckpt", "there is no such file"),
    ):
        with pytest.raises(SystemExit):
            run_train(f"ckpt_path={path}", name=f"run_{path}")
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_resume_of_a_run_that_was_moved_keeps_its_best(run_train: Callable[..., Path], tmp_path: Path) -> None:
    run_train(name="first").rename(tmp_path / "moved")
    again = run_train(f"ckpt_path={tmp_path}/moved", "trainer.max_epochs=3", name="again")
    assert (again / "checkpoints" / "best.ckpt").exists()
    assert len(metrics_rows(again)) == 3
