"""Test `finetune.cli.jobs`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from finetune.cli.arguments import quote_paths
from finetune.cli.errors import SOME_FAILED, Exit
from finetune.cli.jobs import JobRunner, Task, run_jobs

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
    assert "error: job 1 (phash_threshold=3) failed: RuntimeError: three" in capsys.readouterr().err


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
