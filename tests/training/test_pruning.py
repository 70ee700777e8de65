"""Test `finetune.training.pruning`, with a module that logs what the test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from optuna.trial import TrialState
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetune.training.pruning import TrialPruning


class Logged(LightningModule):
    """Logs one value of the sequence at each validation."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.layer, self.logged = nn.Linear(1, 1), values

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).mean()
        self.log("train/loss", self.logged[self.current_epoch], on_epoch=True, on_step=False, batch_size=1)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/acc", self.logged[self.current_epoch], batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


BATCHES = DataLoader(TensorDataset(torch.zeros(1, 1)))


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A storage with a study of six trials whose values are 0.5 and more at each step."""
    url = f"sqlite:///{tmp_path}/x.db"
    study = optuna.create_study(study_name="finetune", storage=url, direction="maximize")
    for value in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75):
        steps = dict.fromkeys(range(1, 6), value)
        study.add_trial(optuna.create_trial(value=value, params={}, intermediate_values=steps))
    return url


Fit = Callable[..., Trainer]


@pytest.fixture
def fit(address: str, tmp_path: Path) -> Fit:
    """Fit a module as a trial."""

    def run(
        number: int, values: Sequence[float], pruner: str = "median", monitor: str = "val/acc", **options: Any
    ) -> Trainer:
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
            log_every_n_steps=1, default_root_dir=tmp_path, max_epochs=options.pop("max_epochs", 5),
            callbacks=[
                TrialPruning(address, None, number, pruner, monitor),
                ModelCheckpoint(tmp_path / "checkpoints", "last", save_on_train_epoch_end=True, enable_version_counter=False),
            ],
        )  # fmt: skip
        trainer.fit(Logged(values), BATCHES, BATCHES, weights_only=True, **options)
        return trainer

    return run


def ask(address: str) -> int:
    return optuna.load_study(study_name="finetune", storage=address).ask().number


def read(address: str, number: int) -> optuna.trial.FrozenTrial:
    return optuna.load_study(study_name="finetune", storage=address).trials[number]


def test_run_that_is_worse_than_others_stops_after_the_validation_that_shows_it(
    fit: Fit, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = ask(address)
    trainer = fit(number, [0.9, 0.9, 0.1, 0.1, 0.1])
    # the best so far is what Optuna's median rule compares: 0.9 stays good
    assert (trainer.current_epoch, read(address, number).intermediate_values) == (
        5,
        dict(enumerate([0.9, 0.9, 0.1, 0.1, 0.1], 1)),
    )
    number = ask(address)
    trainer = fit(number, [0.1, 0.1, 0.9, 0.9, 0.9])
    assert trainer.current_epoch == 1
    assert read(address, number).intermediate_values == {1: 0.1}
    assert read(address, number).user_attrs == {"pruned": True}
    assert "is pruned after 1 validations, worse than others were (val/acc, sweep.pruner=median)." in " ".join(
        capsys.readouterr().out.split()
    )


def test_without_a_pruner_values_are_reported_and_nothing_is_stopped(fit: Fit, address: str) -> None:
    number = ask(address)
    assert fit(number, [0.1] * 5, "none").current_epoch == 5
    assert read(address, number).intermediate_values == dict.fromkeys(range(1, 6), 0.1)
    assert read(address, number).user_attrs == {}


def test_last_epoch_is_not_pruned_for_nothing_is_left_to_stop(fit: Fit, address: str) -> None:
    number = ask(address)
    fit(number, [0.1], max_epochs=1)
    assert read(address, number).user_attrs == {}


def test_metric_of_the_training_is_reported_at_the_end_of_an_epoch(fit: Fit, address: str) -> None:
    number = ask(address)
    fit(number, [3.0, 2.0], "none", "train/loss", max_epochs=2)
    assert read(address, number).intermediate_values == {1: 3.0, 2: 2.0}


def test_run_that_goes_on_as_another_trial_reports_all_and_no_step_twice(
    fit: Fit, address: str, tmp_path: Path
) -> None:
    first = ask(address)
    fit(first, [0.8, 0.81], max_epochs=2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    fit(first, [0.8, 0.81, 0.82], max_epochs=3, ckpt_path=last)  # the same trial
    assert read(address, first).intermediate_values == {1: 0.8, 2: 0.81, 3: 0.82}
    second = ask(address)
    fit(second, [0.8, 0.81, 0.82, 0.83], max_epochs=4, ckpt_path=last)
    assert read(address, second).intermediate_values == {1: 0.8, 2: 0.81, 3: 0.82, 4: 0.83}


def test_trial_that_has_ended_is_left_as_it_is(fit: Fit, address: str) -> None:
    study = optuna.load_study(study_name="finetune", storage=address)
    number = study.ask().number
    study.tell(number, 0.4, state=TrialState.COMPLETE)
    assert fit(number, [0.1] * 5).current_epoch == 5
    assert read(address, number).intermediate_values == {}
