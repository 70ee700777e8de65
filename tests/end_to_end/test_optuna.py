"""Run sweeps by Optuna with real trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from finetune.compare import compare
from tests.end_to_end.helpers import Command, read_metrics, read_table
from tests.helpers import TINY

LR = optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)


def load_study(path: Path) -> optuna.Study:
    return optuna.load_study(study_name="finetune", storage=JournalStorage(JournalFileBackend(str(path))))


@pytest.mark.slow
def test_pruned_run_ends_early_with_its_record_and_is_told_as_such(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    journal = tmp_path / "outside.journal"
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(study_name="finetune", storage=storage, direction="maximize")
    for i in range(5):  # better than any run can be
        steps = dict.fromkeys(range(1, 9), 2.0)
        study.add_trial(
            create_trial(value=2.0, params={"optimizer.lr": 0.01 * (i + 1)}, distributions={"optimizer.lr": LR},
                         intermediate_values=steps)
        )  # fmt: skip
    words = [
        *TINY,
        f"data.root={photos}",
        "trainer.max_epochs=8",
        "sweep=optuna",
        "sweep.pruner=median",
        "sweep.n_trials=7",
        f"sweep.storage=journal:{journal}",
    ]
    _, code = command("train", *words, "optimizer.lr=tag(log,interval(1e-4,1e-1))", f"hydra.sweep.dir={sweep}")
    assert code == 0
    pruned = load_study(journal).trials[5:]
    for trial, folder in zip(pruned, (sweep / "0", sweep / "1"), strict=True):
        row, *more = read_table(folder / "metrics.csv")
        assert more == []  # one epoch of eight
        assert trial.state is TrialState.PRUNED
        assert trial.value == pytest.approx(float(row["val/acc"]))
        metrics = read_metrics(folder)
        assert metrics["best"]["epoch"] == 1
        assert (folder / "checkpoints" / "best.ckpt").is_file()
        assert "sweep" not in metrics["command"]  # the run alone is no sweep
    assert "trial 5 is pruned after 1 validations" in " ".join(capsys.readouterr().out.split())
    page = (sweep / "compare.html").read_text(encoding="utf-8")
    assert "<h2>Slices</h2>" in page
    assert page.count("<td>pruned</td>") == 2
    assert page.count("<td>complete</td>") == 5
    compare([str(sweep)])  # it may be a stranger's, which must not choose the files that are opened
    assert "kept outside its folder" in " ".join(capsys.readouterr().out.split())
    assert "<td>pruned</td>" not in (sweep / "compare.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_batch_of_joblib_is_told_to_the_study_with_what_each_process_has_reported(
    photos: Path, tmp_path: Path, command: Command
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = tmp_path / "sweep"
    words = [
        *TINY,
        f"data.root={photos}",
        "sweep=optuna",
        "sweep/space=head",
        "sweep.n_trials=4",
        "hydra/launcher=joblib",
    ]
    _, code = command("train", *words, "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}")
    assert code == 0
    trials = load_study(sweep / "study.journal").trials
    values = [json.loads((sweep / str(i) / "metrics.json").read_text())["best"]["val/acc"] for i in range(4)]
    assert [trial.value for trial in trials] == pytest.approx(values)
    assert [max(trial.intermediate_values.values()) for trial in trials] == pytest.approx(values)


@pytest.mark.slow
def test_space_of_ones_own_is_a_file_in_ones_own_folder(
    photos: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "conf" / "sweep" / "space"
    mine.mkdir(parents=True)
    space = "# @package hydra.sweeper.params\nseed: range(3, 5)\noptimizer: choice(sgd, adamw)\n"
    (mine / "mine.yaml").write_text(space)
    (mine / "wrong.yaml").write_text(space + "optimizer.lrr: interval(1, 2)\n")
    words = [*TINY, f"data.root={photos}", "trainer.max_epochs=1", "--config-dir", str(tmp_path / "conf")]
    _, code = command("train", *words, "sweep/space=mine", f"hydra.sweep.dir={tmp_path}/sweep")  # a grid
    assert code == 0
    assert len(list((tmp_path / "sweep").glob("*/metrics.json"))) == 4
    _, code = command("train", *words, "sweep=optuna", "sweep/space=wrong", f"hydra.sweep.dir={tmp_path}/wrong")
    assert code == 2
    assert "There is no key 'optimizer.lrr'. Did you mean optimizer.lr" in capsys.readouterr().err
