"""Run sweeps with the launchers of Hydra that start processes of their own."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.helpers import RunUntil, assert_same_run, finished, read_metrics, wait_for
from tests.helpers import Start

pytestmark = pytest.mark.slow

LONG = ("strategy=finetune", "optimizer.lr=0.001", "data.augment=basic", "trainer.max_epochs=60")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are as many as a run takes by itself."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("environment")
def test_points_side_by_side_have_the_numbers_of_points_one_after_the_other(start: Start, tmp_path: Path) -> None:
    """But for the last digit: they have fewer threads. A point that fails is named, and the others are done."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra launchers is not installed")
    words = ("-m", "seed=0,1", "data.image_size=32,4", "trainer.precision=64-true")
    folders = [tmp_path / "one", tmp_path / "many"]
    for folder, launcher in zip(folders, ([], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]), strict=True):
        process = start(*words, *launcher, f"hydra.sweep.dir={folder}")
        output, errors = process.communicate(timeout=180)
        assert process.returncode == 2, errors
        assert len(re.findall(r"error: job \d \(data\.image_size=4 seed=\d\) failed", errors)) == 2
        # told once, or by both where they fail at the same time
        assert 1 <= errors.count("squeezenet1_1 needs images of at least 21 pixels") <= 2
        assert "Validation accuracy" in output
    one, many = (
        {read_metrics(path.parent)["command"].rpartition("seed=")[2][:1]: read_metrics(path.parent)["best"]["val/loss"]
         for path in folder.glob("*/metrics.json")}
        for folder in folders
    )  # fmt: skip
    assert one.keys() == many.keys() == {"0", "1"}
    assert many == pytest.approx(one, abs=1e-6)
    cores = len(os.sched_getaffinity(0))
    for path in folders[1].glob("*/metrics.json"):
        assert f"Device    cpu with {max(1, cores // 2)} threads" in (path.parent / "train.log").read_text()


def test_a_job_of_submitit_goes_on_where_its_time_was_up(run_until: RunUntil, start: Start, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra launchers is not installed")
    whole = run_until(*LONG, "seed=1")
    sweep = start(*LONG, "-m", "seed=1", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep")
    last = tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt"
    wait_for(last, sweep)
    before = last.stat().st_mtime_ns
    os.kill(job_of(tmp_path / "sweep"), signal.SIGUSR2)  # what submitit's controller sends when the time is nearly up
    finished(sweep, timeout=400)
    said = next((tmp_path / "sweep" / ".submitit").glob("*/*.out")).read_text()
    assert ": goes on\n" in said
    assert last.stat().st_mtime_ns > before
    assert_same_run(whole, tmp_path / "sweep" / "0")


def job_of(sweep: Path) -> int:
    """The process that runs the point of a sweep."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                b"submitit.core._submit" in words
                and os.fsencode(sweep) in words[words.index(b"submitit.core._submit") + 1]
            ):
                return int(path.parent.name)
    raise AssertionError("there is no such process")
