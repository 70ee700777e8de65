"""Test `finetune.cli.errors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from torch.utils.data import DataLoader

from finetune.cli import errors
from finetune.models.specs import find_family


def test_is_user_error_is_about_who_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal") as bug:
        int("x")
    assert not errors.is_user_error(bug.value)
    with pytest.raises(ValueError, match="no model") as mistake:
        find_family("x")
    assert errors.is_user_error(mistake.value)


@pytest.mark.parametrize("happens", [EOFError(), ConnectionResetError(104, "reset"), FileNotFoundError(2, "no socket")])
def test_a_worker_that_died_while_it_handed_over_a_batch_is_told(
    happens: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*args: object, **kwargs: object) -> object:
        raise happens

    iterator: Any = iter(DataLoader(cast(Any, [0, 1]), num_workers=1))
    monkeypatch.setattr(iterator._data_queue, "get", get)
    with pytest.raises(type(happens)) as error:
        next(iterator)
    assert errors.is_user_error(error.value)
    assert "a process that decodes images has died" in errors.explain(error.value, "train")
    assert not errors.is_user_error(happens.with_traceback(None))
    iterator._shutdown_workers()


def test_a_worker_that_died_is_told_wherever_its_signal_met_the_main_process() -> None:
    try:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        except RuntimeError as killed:
            raise ValueError("The loss CrossEntropyLoss does not take logits (8, 3)") from killed
    except ValueError as error:
        text = errors.explain(error, "train")
    assert "a process that decodes images has died (DataLoader worker (pid 7) is killed by signal: Killed.)" in text


def test_what_submitit_says_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit", reason="the extra launchers is not installed")
    utils = submitit.core.utils
    refused = utils.FailedJobError("sbatch: error: invalid partition specified: no\nsbatch: error: Batch job failed.\n")
    lost = utils.UncompletedJobError(
        "Job 3_0 (task: 0) has not produced any output (state: CANCELLED)\nError stream\n---"
    )
    assert errors.is_user_error(refused)
    assert errors.explain(refused, "train") == (
        "hydra/launcher: sbatch: error: invalid partition specified: no; sbatch: error: Batch job failed."
    )
    assert errors.explain(lost, "train") == (
        "hydra/launcher: Job 3_0 (task: 0) has not produced any output (state: CANCELLED). "
        "What it has said is in .submitit in the sweep's folder."
    )
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match='Could not detect "srun"') as no_slurm:
        submitit.SlurmExecutor(folder=tmp_path)
    assert errors.is_user_error(no_slurm.value)


def test_a_password_in_an_address_is_not_told() -> None:
    error = ValueError("sweep.storage=postgresql://me:secret@host/db cannot be opened")
    assert "postgresql://host/db cannot be opened" in errors.explain(error, "train")
