"""Train with `optimizer=sam`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.helpers import Command, RunUntil, assert_same_run, read_run_checkpoint
from tests.helpers import TINY, faults_of


def test_the_base_optimizer_is_the_one_that_the_command_line_names(command: Command, photos: Path) -> None:
    words = [*TINY, f"data.root={photos}", "optimizer=sam", "strategy=differential", "optimizer.rho=0.1"]
    folder, code = command("train", *words, "optimizer.base._target_=torch.optim.AdamW", "~optimizer.momentum")
    assert code == 0
    state = read_run_checkpoint(folder)["optimizer_states"][0]
    assert {"exp_avg", "exp_avg_sq"} <= state["state"][0].keys()  # AdamW's
    assert [(g["lr"], g["rho"]) for g in state["param_groups"]] == [(0.01, 0.1), (pytest.approx(0.001), 0.1)]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_for_bit(run_until: RunUntil) -> None:
    argv = ("optimizer=sam", "strategy=finetune", "data.augment=basic", "loss.mixup=0.2")
    whole = run_until(*argv)
    half = run_until(*argv, stop=(1, 1), code=143)
    assert_same_run(whole, run_until(f"resume={half}"))


def test_a_base_that_is_no_optimizer_of_an_allowed_package_is_a_fault(photos: Path) -> None:
    words = [*TINY, f"data.root={photos}", "optimizer=sam", "optimizer.base._target_=os.system"]
    assert faults_of("train", *words)[0].startswith("optimizer.base._target_=os.system is not allowed.")
