"""Test `finetune.cli.jobs`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from finetune.cli.arguments import quote_paths
from finetune.cli.errors import SOME_FAILED, Exit
from finetune.cli.jobs import JobRunner, SweepStart, Task, count_points, run_jobs
from finetune.cli.run_folder import STATE

pytestmark = pytest.mark.usefixtures("hydra_models")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, from which the jobs are started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_runner(task: Task, *words: str) -> JobRunner:
    """A runner of the command `check`, whose function is the test's."""
    return JobRunner("check", task, list(sys.argv), quote_paths(["data.root=.", *words]))


def make_sweep(task: Task, monkeypatch: pytest.MonkeyPatch, *words: str) -> JobRunner:
    runner = make_runner(task, "-m", *words, "hydra.sweep.dir=sweep")
    monkeypatch.setattr(sys, "argv", ["check", *runner.overrides])  # from which Hydra reads a sweep
    return runner


def test_single_run_gets_its_configuration_and_its_error_is_logged_and_raised(folder: Path) -> None:
    seen: list[tuple[str, int]] = []

    def task(cfg: DictConfig) -> None:
        seen.append((cfg.data.root, cfg.phash_threshold))
        raise RuntimeError("no")

    runner = make_runner(task, "phash_threshold=3", "hydra.run.dir=run")
    with pytest.raises(RuntimeError, match=r"^no$") as error:
        run_jobs(runner, None)
    assert seen == [(".", 3)]
    assert runner.errors == [error.value]
    assert "RuntimeError: no" in (folder / "run" / "check.log").read_text()


def test_wrong_words_are_told_before_anything_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def task(cfg: DictConfig) -> None:
        pytest.fail("it ran")

    for runner in (make_runner(task, "phash_treshold=3"), make_sweep(task, monkeypatch, "phash_treshold=3,4")):
        with pytest.raises(ValueError, match=r"no key 'phash_treshold'\. Did you mean phash_threshold"):
            run_jobs(runner, None)
    assert list(folder.iterdir()) == []


def test_sweep_goes_on_after_a_job_that_fails_and_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    ended: list[Path] = []

    def task(cfg: DictConfig) -> float:
        seen.append(cfg.phash_threshold)
        if cfg.phash_threshold == 3:
            raise RuntimeError("three")
        return 0.5

    runner = make_sweep(task, monkeypatch, "phash_threshold=2,3,4")
    with pytest.raises(RuntimeError, match=r"^three$"):
        run_jobs(runner, ended.append)
    assert seen == [2, 3, 4]
    assert ended == [Path("sweep")]
    assert len(runner.errors) == 1
    first, bug = capsys.readouterr().err.splitlines()  # and nothing of Hydra's
    assert first == "error: job 1 (phash_threshold=3) failed: RuntimeError: three"
    assert bug.startswith("This looks like a bug in finetune")


def test_a_reason_that_several_points_share_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(cfg: DictConfig) -> float:
        raise FileExistsError("there already" if cfg.phash_threshold != 3 else "another reason")

    with pytest.raises(FileExistsError, match="there already"):
        run_jobs(make_sweep(task, monkeypatch, "phash_threshold=2,3,4"), None)
    assert capsys.readouterr().err.splitlines() == [
        "error: job 0 (phash_threshold=2) failed: there already",
        "error: job 1 (phash_threshold=3) failed: another reason",
        "error: job 2 (phash_threshold=4) failed as job 0 did.",
    ]


def test_job_that_is_done_but_for_some_inputs_ends_a_run_but_no_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def task(cfg: DictConfig) -> None:
        seen.append(cfg.phash_threshold)
        raise Exit(f"no prediction for {cfg.phash_threshold} images", SOME_FAILED)

    with pytest.raises(Exit, match="for 6 images"):
        run_jobs(make_runner(task, "hydra.run.dir=run"), None)
    runner = make_sweep(task, monkeypatch, "phash_threshold=2,3")
    with pytest.raises(SystemExit) as stop:
        run_jobs(runner, None)
    assert stop.value.code == SOME_FAILED
    assert seen == [6, 2, 3]
    assert (len(runner.incomplete), runner.errors) == (2, [])
    assert "no prediction for 3 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "count"),
    [(["seed=0"], 1), (["seed=0,1", "lr=1,2,3"], 6), (["seed=range(4)"], 4), (["lr=interval(0,1)"], None), (["a=glob(*)"], None)],
)  # fmt: skip
def test_points_of_a_sweep_are_counted(words: list[str], count: int | None) -> None:
    assert count_points(OmegaConf.create({"hydra": {"overrides": {"task": words}}})) == count


def test_a_sweeper_of_trials_says_how_many_they_are() -> None:
    cfg = {"sweep": {"n_trials": 7}, "hydra": {"overrides": {"task": ["seed=0,1"]}}}
    assert count_points(OmegaConf.create(cfg)) == 7


def test_two_processes_do_not_run_one_sweep(folder: Path) -> None:
    script = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"
    (folder / "sweep").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script, "sweep/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        cfg = OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}, "overrides": {"task": [], "hydra": []}}})
        with pytest.raises(Exit, match="sweep: another process is running this sweep"):
            SweepStart().on_multirun_start(cfg)
        other.communicate("\n")
    SweepStart().on_multirun_start(cfg)
    STATE.release()
    assert cfg.hydra.overrides.hydra[-1] == 'hydra.sweep.dir="sweep"'


def test_a_folder_that_holds_another_point_is_not_taken_for_this_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = make_sweep(lambda cfg: 0.5, monkeypatch, "phash_threshold=2,3", "hydra.sweep.subdir=${data.root}x")
    with pytest.raises(FileExistsError, match=r"x: sweep/\.x holds another point|holds another point"):
        run_jobs(runner, None)
    assert "job 1 (phash_threshold=3) failed" in capsys.readouterr().err


def test_the_start_of_a_sweep_that_fails_ends_the_command(folder: Path) -> None:
    (folder / "file").touch()
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": "file/sweep"}, "overrides": {"task": [], "hydra": []}}})
    with pytest.raises(Exit, match=r"file/sweep: Not a directory") as stop:
        SweepStart().on_multirun_start(cfg)
    assert stop.value.code == 2
