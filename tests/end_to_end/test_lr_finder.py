"""Train with `optimizer.lr=auto`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.end_to_end.helpers import Command, RunUntil, assert_same_run, read_metrics
from tests.helpers import TINY, faults_of

AUTO = ("optimizer.lr=auto", "optimizer=adamw", "scheduler=cosine", "strategy=differential", "data.augment=basic")


@pytest.fixture
def found(command: Command, photos: Path) -> tuple[Path, float]:
    """A run that has searched, and the rate that its record names."""
    folder, code = command("train", *TINY, f"data.root={photos}", *AUTO, "report=true")
    assert code == 0
    config: Any = OmegaConf.load(folder / "config.yaml")
    return folder, config.optimizer.lr


def test_a_run_that_searches_is_the_run_of_the_rate_that_it_records(
    found: tuple[Path, float], command: Command, photos: Path
) -> None:
    folder, lr = found
    assert read_metrics(folder)["found_lr"] == lr
    assert (folder / "plots" / "lr_finder.png").stat().st_size > 1000
    given, code = command("train", *TINY, f"data.root={photos}", *AUTO, f"optimizer.lr={lr!r}")
    assert code == 0
    assert_same_run(folder, given)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_at_its_rate(run_until: RunUntil, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run_until(*AUTO)
    half = run_until(*AUTO, stop=(1, 1), code=143)
    capsys.readouterr()
    resumed = run_until(f"resume={half}")
    out = capsys.readouterr().out
    assert "\nRate " not in out
    assert f"optimizer.lr stays {read_metrics(whole)['found_lr']}" in " ".join(out.split())
    assert_same_run(whole, resumed)
    assert read_metrics(resumed)["found_lr"] == read_metrics(whole)["found_lr"]


def test_a_scheduler_with_a_rate_of_its_own_is_a_fault(photos: Path) -> None:
    words = [*TINY, f"data.root={photos}", "optimizer.lr=auto", "scheduler=onecycle", "+scheduler.max_lr=0.1"]
    assert faults_of("train", *words) == [
        "optimizer.lr=auto would change nothing: the scheduler has its own scheduler.max_lr=0.1; leave one of them out."
    ]
