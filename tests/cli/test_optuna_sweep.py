"""Test `finetune.cli.optuna_sweep`, with functions of the configuration in place of a training."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra sweep is not installed")

import optuna
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from finetune.cli import optuna_sweep
from finetune.cli.arguments import prepare_arguments
from finetune.cli.errors import Exit
from finetune.cli.jobs import JobRunner, run_jobs
from finetune.cli.space import Choice, Dimension, Interval
from finetune.io.paths import CONF
from finetune.io.study import REPEATS

pytestmark = pytest.mark.usefixtures("hydra_models")

Sweep = Callable[..., list[DictConfig]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, from which the sweeps are started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def best_at_a_hundredth(cfg: DictConfig) -> float:
    """What a training could come to: 1 with a rate of 0.01, less with others."""
    return 1 - abs(math.log10(cfg.optimizer.lr) + 2)


@pytest.fixture
def hydra_sweep(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run `finetune.train` with the task in place of the training; return the configurations that it got."""

    def run(
        task: Callable[[DictConfig], Any], *words: str, raises: type[BaseException] | None = None
    ) -> list[DictConfig]:
        seen: list[DictConfig] = []

        def counted(cfg: DictConfig) -> Any:
            seen.append(cfg)
            return task(cfg)

        common = ["data=imagefolder", "data.root=.", "hydra.sweep.dir=sweep"]
        overrides = prepare_arguments("train", [*common, *words])
        monkeypatch.setattr(sys, "argv", ["train", *overrides])
        runner = JobRunner("train", counted, list(sys.argv), overrides)
        if raises is None:
            run_jobs(runner, None)
        else:
            with pytest.raises(raises, match=r".*"):
                run_jobs(runner, None)
        return seen

    return run


class Launcher:
    """Runs points one after the other, as Hydra's own launcher does, without composing them."""

    def __init__(self, task: Callable[[DictConfig], Any]) -> None:
        self.task = task

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = []
        for overrides in job_overrides:
            job = JobReturn(status=JobStatus.COMPLETED)
            try:
                words = [word.removeprefix("++") for word in overrides]
                job.return_value = self.task(OmegaConf.from_dotlist(words))
            except Exception as error:
                job = JobReturn(status=JobStatus.FAILED)
                job.return_value = error
            jobs.append(job)
        return jobs


class Sweeper:
    """What Hydra gives to a sweeper; every point can be composed."""

    def __init__(self, config: DictConfig, task: Callable[[DictConfig], Any]) -> None:
        self.config, self.launcher = config, Launcher(task)
        self.hydra_context: Any = SimpleNamespace(config_loader=None)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        pass


DEFAULTS = {
    "monitor": "val/acc",
    "sweep": OmegaConf.load(CONF / "sweep" / "optuna.yaml").sweep,
    "hydra": {
        "sweep": {"dir": "sweep"},
        "sweeper": {"_target_": "hydra_plugins.finetune_sweeper.OptunaSweeper", "params": None},
        "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
    },
}  # fmt: skip


@pytest.fixture
def sweep() -> Sweep:
    """Run a sweep as `finetune.train` does, without Hydra; return the configurations that the task got."""

    def run(
        task: Callable[[DictConfig], Any], *words: str, raises: type[BaseException] | None = None
    ) -> list[DictConfig]:
        seen: list[DictConfig] = []

        def counted(cfg: DictConfig) -> Any:
            seen.append(cfg)
            return task(cfg)

        own = [word for word in words if word.startswith(("sweep.", "monitor=", "hydra."))]
        config = OmegaConf.merge(DEFAULTS, OmegaConf.from_dotlist(own))
        assert isinstance(config, DictConfig)
        arguments = [word for word in words if word not in own and not word.startswith("sweep=")]
        sweeper: Any = Sweeper(config, counted)
        with pytest.raises(raises, match=r".*") if raises is not None else nullcontext():
            optuna_sweep.sweep_by_optuna(sweeper, arguments)
        return seen

    return run


RATES = ("sweep=optuna", "optimizer.lr=tag(log,interval(1e-4,1))")


def read_trials(path: Path = Path("sweep/study.journal")) -> list[optuna.trial.FrozenTrial]:
    """By Optuna alone."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name="finetune", storage=storage).get_trials(deepcopy=False)


def test_name_of_the_sweep_starts_it_and_the_study_holds_what_was_trained(hydra_sweep: Sweep) -> None:
    seen = hydra_sweep(best_at_a_hundredth, *RATES, "sweep.n_trials=2")
    trials = read_trials()
    assert [trial.params["optimizer.lr"] for trial in trials] == [cfg.optimizer.lr for cfg in seen]
    assert [trial.value for trial in trials] == [best_at_a_hundredth(cfg) for cfg in seen]
    assert [cfg.sweep.trial for cfg in seen] == list(range(2))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize(("monitor", "direction"), [("val/acc", "MAXIMIZE"), ("val/loss", "MINIMIZE")])
def test_direction_follows_from_the_monitor(sweep: Sweep, monitor: str, direction: str) -> None:
    sweep(lambda cfg: 0.5, *RATES, "sweep.n_trials=1", f"monitor={monitor}", "sweep.storage=sqlite:///x.db")
    assert optuna.load_study(study_name="finetune", storage="sqlite:///x.db").direction.name == direction


def test_direction_of_a_metric_of_ones_own_is_what_it_says(hydra_sweep: Sweep) -> None:
    hydra_sweep(
        lambda cfg: 0.5,
        *RATES,
        "sweep.n_trials=1",
        "+metrics=kappa",
        "monitor=val/kappa",
        "sweep.storage=sqlite:///x.db",
    )
    assert optuna.load_study(study_name="finetune", storage="sqlite:///x.db").direction.name == "MAXIMIZE"


def test_space_of_a_file_varies_what_the_command_line_leaves(
    hydra_sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = hydra_sweep(
        lambda cfg: 0.5, "sweep=optuna", "sweep/space=finetune", "sweep.n_trials=3", "optimizer=sgd", "seed=7"
    )
    assert {cfg.optimizer._target_ for cfg in seen} == {"torch.optim.SGD"}
    assert {cfg.optimizer.lr for cfg in seen} == {1e-3}  # the file's rates were those of AdamW
    assert len({cfg.strategy.groups[2].lr for cfg in seen}) == 3
    assert {cfg.seed for cfg in seen} == {7}
    printed = " ".join(capsys.readouterr().out.split())
    assert "because the command line says otherwise: optimizer, optimizer.lr, optimizer.weight_decay." in printed


def test_sweep_without_optuna_names_the_extra(hydra_sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'finetune-lightning\[sweep\]'"):
        hydra_sweep(best_at_a_hundredth, *RATES)


@pytest.mark.slow
def test_trial_that_fails_is_told_and_the_others_go_on(hydra_sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    def task(cfg: DictConfig) -> Any:
        if cfg.sweep.trial == 1:
            raise RuntimeError("one")
        return {2: None, 3: math.nan}.get(cfg.sweep.trial, 0.5)

    assert len(hydra_sweep(task, *RATES, "sweep.n_trials=5", raises=RuntimeError)) == 5
    assert [trial.state.name for trial in read_trials()] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    printed = capsys.readouterr()
    assert "failed: RuntimeError: one" in printed.err
    assert "trial 2 counts as failed: val/acc was None" in printed.out
    assert "trial 3 counts as failed: val/acc was nan" in printed.out
    assert "val/acc 0.5000, trial 0: optimizer.lr=" in printed.out
    assert "python -m finetune.train" not in printed.out


def test_trial_that_cannot_be_composed_has_failed_and_the_others_go_on(hydra_sweep: Sweep) -> None:
    # plain SGD has no such key; the first point, which is looked at before, does
    words = (
        "sweep=optuna",
        "optimizer=sgd,adamw",
        "optimizer.momentum=interval(0,1)",
        "sweep.n_trials=3",
        "sweep.seed=1",
    )
    seen = hydra_sweep(lambda cfg: 0.5, *words, raises=Exception)
    states = [(trial.params["optimizer"], trial.state.name) for trial in read_trials()]
    assert set(states) == {("sgd", "COMPLETE"), ("adamw", "FAIL")}
    assert len(seen) == sum(name == "sgd" for name, _ in states)


def test_repeated_sweep_runs_what_is_left(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*RATES, "sweep.n_trials=2")
    assert len(sweep(best_at_a_hundredth, *words)) == 2
    assert len(sweep(best_at_a_hundredth, *words)) == 0
    assert len(sweep(best_at_a_hundredth, *RATES, "sweep.n_trials=3")) == 1
    assert "2 of its 3 trials are there, 1 to come" in capsys.readouterr().out
    assert len(read_trials()) == 3


def test_interrupted_sweep_goes_on_with_the_point_and_ends_as_if_it_had_not_been(sweep: Sweep) -> None:
    """The value is that of a sweep in one piece: the same seed, the same points."""
    words = (*RATES, "sweep.n_trials=6")
    whole = [cfg.optimizer.lr for cfg in sweep(best_at_a_hundredth, *words, "hydra.sweep.dir=whole")]

    def stop_at(number: int) -> Callable[[DictConfig], float]:
        def task(cfg: DictConfig) -> float:
            if cfg.sweep.trial == number:
                raise Exit("interrupted", 130)
            return best_at_a_hundredth(cfg)

        return task

    parts = [sweep(stop_at(2), *words, raises=Exit), sweep(stop_at(4), *words, raises=Exit), sweep(stop_at(-1), *words)]
    rates = [[cfg.optimizer.lr for cfg in part] for part in parts]
    assert [rates[0][-1], rates[1][-1]] == [rates[1][0], rates[2][0]]  # the points that were interrupted
    assert [*rates[0][:-1], *rates[1][:-1], *rates[2]] == whole
    trials = read_trials()
    assert [trial.number for trial in trials if trial.state is TrialState.FAIL] == [2, 4]
    assert [trial.user_attrs[REPEATS] for trial in trials if REPEATS in trial.user_attrs] == [2, 4]


def test_killed_trial_is_asked_for_again_in_its_own_folder_alone(sweep: Sweep) -> None:
    words = (*RATES, "sweep.storage=journal:x.journal", "sweep.n_trials=4")
    (first,) = sweep(best_at_a_hundredth, *words, "sweep.n_trials=1")
    storage = JournalStorage(JournalFileBackend("x.journal"))
    study = optuna.load_study(study_name="finetune", storage=storage)
    killed = study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1, log=True)})
    killed.set_user_attr("sweep", str(Path("sweep").absolute()))
    other = study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1, log=True)})
    other.set_user_attr("sweep", "/another/that/runs")
    seen = sweep(best_at_a_hundredth, *words)
    assert seen[0].optimizer.lr == killed.params["optimizer.lr"]
    assert len(seen) == 2  # one is there, one runs elsewhere
    states = {trial.number: trial.state.name for trial in read_trials(Path("x.journal"))}
    assert states == {0: "COMPLETE", 1: "FAIL", 2: "RUNNING", 3: "COMPLETE", 4: "COMPLETE"}
    assert first.optimizer.lr not in [cfg.optimizer.lr for cfg in seen]


@pytest.mark.parametrize(("retry", "again"), [("true", 2), ("false", 0)])
def test_failed_trials_run_again_unless_told_otherwise(sweep: Sweep, retry: str, again: int) -> None:
    def task(cfg: DictConfig) -> float:
        if cfg.sweep.trial in (1, 2):
            raise RuntimeError("no")
        return 0.5

    words = (*RATES, "sweep.n_trials=4")
    first = sweep(task, *words, raises=RuntimeError)
    seen = sweep(lambda cfg: 0.5, *words, f"sweep.retry={retry}")
    assert [cfg.optimizer.lr for cfg in seen] == [cfg.optimizer.lr for cfg in first][1:3][:again]


def test_study_of_another_sweep_is_refused(sweep: Sweep) -> None:
    words = (*RATES, "sweep.storage=sqlite:///x.db", "sweep.n_trials=1")
    sweep(best_at_a_hundredth, *words, "seed=1", "data.num_workers=0")
    with pytest.raises(ValueError, match=r"its words are .*seed=1, and here .*seed=2\. Give sweep\.study_name="):
        sweep(best_at_a_hundredth, *words, "seed=2")
    with pytest.raises(ValueError, match=r"its monitor is val/acc, and here val/f1\. Give sweep\.study_name="):
        sweep(best_at_a_hundredth, *words, "seed=1", "monitor=val/f1")
    assert len(sweep(best_at_a_hundredth, *words, "seed=2", "sweep.study_name=second")) == 1
    # `resume=` gives the paths of the first time in full
    sweep(best_at_a_hundredth, *words, 'data.root="."', "sweep.study_name=third")
    again = sweep(best_at_a_hundredth, *words, f"data.root={Path.cwd()}", "sweep.study_name=third", "sweep.n_trials=2")
    assert len(again) == 1
    assert len(sweep(best_at_a_hundredth, *words, "seed=1", "data.num_workers=2", "sweep.n_trials=2")) == 1


def test_pruned_trial_is_told_as_such_and_so_is_its_point_where_it_is_not_run_again(sweep: Sweep) -> None:
    """The callback marks a trial; the runner of a repeated point returns its value at once."""

    def task(cfg: DictConfig) -> float:
        storage = JournalStorage(JournalFileBackend("sweep/study.journal"))
        if cfg.seed == 2 and all("pruned" not in trial.user_attrs for trial in storage.get_all_trials(0)):
            number = storage.get_trial_id_from_study_id_trial_number(0, cfg.sweep.trial)
            storage.set_trial_intermediate_value(number, 1, 0.25)
            storage.set_trial_user_attr(number, "pruned", True)
        return 0.5

    sweep(task, "sweep=optuna", "seed=1,2", "sweep.n_trials=3", "sweep.sampler=random", "sweep.seed=1")
    trials = read_trials()
    assert {(trial.params["seed"], trial.state.name) for trial in trials} == {("1", "COMPLETE"), ("2", "PRUNED")}
    assert sum(trial.state is TrialState.PRUNED for trial in trials) > 1
    assert 0.25 in [trial.value for trial in trials if trial.state is TrialState.PRUNED]


def test_equal_points_of_a_batch_are_one_run_and_all_their_trials_are_told(sweep: Sweep) -> None:
    """Three values and eight trials at a time: some are equal."""

    def task(cfg: DictConfig) -> float:
        storage = JournalStorage(JournalFileBackend("sweep/study.journal"))
        if cfg.seed == 2:
            raise RuntimeError("two")
        if cfg.seed == 3:
            number = storage.get_trial_id_from_study_id_trial_number(0, cfg.sweep.trial)
            storage.set_trial_intermediate_value(number, 1, 0.25)
            storage.set_trial_user_attr(number, "pruned", True)
        return 0.5

    words = ("sweep=optuna", "seed=choice(1,2,3)", "sweep.n_trials=8", "sweep.n_jobs=8", "sweep.sampler=random")
    seen = sweep(task, *words, "sweep.seed=1", raises=RuntimeError)
    assert sorted(cfg.seed for cfg in seen) == [1, 2, 3]
    trials = read_trials()
    assert len(trials) == 8
    states = {"1": "COMPLETE", "2": "FAIL", "3": "PRUNED"}
    assert [trial.state.name for trial in trials] == [states[trial.params["seed"]] for trial in trials]
    assert {trial.value for trial in trials if trial.params["seed"] == "1"} == {0.5}
    first = {cfg.seed: cfg.sweep.trial for cfg in seen}
    assert all(first[int(trial.params["seed"])] <= trial.number for trial in trials)


def test_point_that_was_pruned_in_another_folder_is_a_value_here(sweep: Sweep) -> None:
    """A run that does not report has no values of its own by which it would be known: the monitor is of the training."""
    words = ("sweep=optuna", "seed=choice(1)", "sweep.storage=journal:x.journal")
    sweep(lambda cfg: 0.5, *words, "sweep.n_trials=1", "hydra.sweep.dir=other")
    storage = JournalStorage(JournalFileBackend("x.journal"))
    study = optuna.load_study(study_name="finetune", storage=storage)
    elsewhere = study.ask({"seed": optuna.distributions.CategoricalDistribution(("1",))})
    elsewhere.set_user_attr("sweep", "/another")
    elsewhere.set_user_attr("pruned", True)
    study.tell(elsewhere, state=TrialState.PRUNED)
    sweep(lambda cfg: 0.25, *words, "sweep.n_trials=3")
    states = [(trial.state.name, trial.value) for trial in read_trials(Path("x.journal"))]
    assert states == [("COMPLETE", 0.5), ("PRUNED", None), ("COMPLETE", 0.25)]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("lr=choice(0.1,0.2)", "lr=choice(0.1,0.2,0.3)", r"lr=choice\(0\.1,0\.2\), and here .*lr=choice\(0\.1,0\.2,0\.3\)"),
        ("lr=range(1,3)", "lr=choice(1,2)", r"lr=range\(1,3,1\), and here .*lr=choice\(1,2\)"),
        ("lr=interval(0.1,1)", "lr=tag(log,interval(0.1,1))", r"lr=interval\(0\.1,1\.0\), and here .*lr=tag\(log,interv"),
        ("lr=interval(0.1,1)", "lr=interval(0.1,2)", r"lr=interval\(0\.1,1\.0\), and here .*lr=interval\(0\.1,2\.0\)"),
    ],
)  # fmt: skip
def test_study_of_another_space_is_refused(sweep: Sweep, first: str, second: str, message: str) -> None:
    words = ("sweep=optuna", "sweep.n_trials=1")
    sweep(lambda cfg: 0.5, *words, f"optimizer.{first}")
    with pytest.raises(ValueError, match=rf"its space is .*{message}.*\. Give sweep\.study_name="):
        sweep(lambda cfg: 0.5, *words, f"optimizer.{second}", "sweep.n_trials=2")
    assert len(sweep(lambda cfg: 0.5, *words, f"optimizer.{second}", "sweep.study_name=second")) == 1


def test_list_of_folders_is_the_same_space_by_whatever_path(sweep: Sweep, folder: Path) -> None:
    for name in ("a", "b c"):
        (folder / name).mkdir()
    seen = sweep(lambda cfg: 0.5, "sweep=optuna", "data.root=choice(a,'b c')", "sweep.n_trials=1")
    full = f"data.root=choice({folder}/a,'{folder}/b c')"
    seen += sweep(lambda cfg: 0.5, "sweep=optuna", full, "sweep.n_trials=6")
    assert len(seen) == 6
    assert {Path(cfg.data.root) for cfg in seen} == {folder / "a", folder / "b c"}


@pytest.mark.parametrize("storage", ["journal:st.journal", "sqlite:///st.db"])
def test_sweep_repeated_from_another_folder_has_the_same_study(
    hydra_sweep: Sweep, folder: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    hydra_sweep(lambda cfg: 0.5, *RATES, "sweep.n_trials=1", f"sweep.storage={storage}")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    repeated = [f"resume={folder}/sweep", "sweep.n_trials=2"]
    overrides = prepare_arguments("train", repeated)
    monkeypatch.setattr(sys, "argv", ["train", *overrides])
    run_jobs(JobRunner("train", lambda cfg: 0.5, list(sys.argv), overrides), None)
    assert list(elsewhere.iterdir()) == []
    if storage.startswith("sqlite"):
        trials = optuna.load_study(study_name="finetune", storage=f"sqlite:///{folder}/st.db").get_trials()
    else:
        trials = read_trials(folder / "st.journal")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2


def test_sweep_file_of_ones_own_may_leave_out_what_finetunes_says(hydra_sweep: Sweep, folder: Path) -> None:
    mine = folder / "own" / "sweep" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    sweeper = "hydra: {sweeper: {_target_: hydra_plugins.finetune_sweeper.OptunaSweeper}}"
    mine.write_text(f"# @package _global_\nsweep: {{n_trials: 2, verbose: true}}\n{sweeper}\n")
    seen = hydra_sweep(best_at_a_hundredth, "--config-dir", "own", "sweep=mine", RATES[1])
    assert [cfg.sweep.trial for cfg in seen] == [0, 1]
    assert [trial.state for trial in read_trials()] == [TrialState.COMPLETE] * 2


TWO = """
import sys, time
from finetune.cli import groups
from finetune.cli.arguments import prepare_arguments
from finetune.cli.jobs import JobRunner, run_jobs

def task(cfg):
    time.sleep(2)
    return cfg.optimizer.lr

groups.register_models()
words = prepare_arguments("train", sys.argv[1:])
sys.argv = ["train", *words]
run_jobs(JobRunner("train", task, sys.argv, words), None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite:///x.db", "journal:x.journal"])
def test_two_processes_share_the_trials_of_one_storage(storage: str, folder: Path) -> None:
    words = ["data=imagefolder", "data.root=.", *RATES, "sweep.n_trials=6", f"sweep.storage={storage}"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, *words, f"hydra.sweep.dir=sweep{i}"],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (1, 2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    if storage.startswith("sqlite"):
        trials = optuna.load_study(study_name="finetune", storage=storage).get_trials()
    else:
        trials = read_trials(folder / "x.journal")
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert 6 <= len(trials) <= 7  # both may see room for the last one
    assert len({trial.params["optimizer.lr"] for trial in trials}) == len(trials)
    assert {Path(trial.user_attrs["sweep"]).name for trial in trials} == {"sweep1", "sweep2"}


def test_points_of_a_batch_are_asked_for_together(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(best_at_a_hundredth, *RATES, "sweep.n_trials=5", "sweep.n_jobs=2")
    assert [trial.number for trial in read_trials()] == [0, 1, 2, 3, 4]
    asked = [trial.datetime_start for trial in read_trials()]
    ended = [trial.datetime_complete for trial in read_trials()]
    assert asked[1] is not None
    assert ended[0] is not None
    assert asked[1] < ended[0]
    assert asked[2] is not None
    assert asked[2] > ended[0]


def test_dimensions_become_distributions_of_optuna() -> None:
    d = optuna.distributions
    cases: dict[Dimension, d.BaseDistribution] = {
        Interval(0.1, 2.0): d.FloatDistribution(0.1, 2.0),
        Interval(1e-4, 1e-1, log=True): d.FloatDistribution(1e-4, 1e-1, log=True),
        Interval(1, 64, integer=True, log=True): d.IntDistribution(1, 64, log=True),
        Choice(("8", "6", "4"), range(8, 3, -2)): d.IntDistribution(4, 8, step=2),
        Choice(("a", "null")): d.CategoricalDistribution(("a", "null")),
    }
    assert [optuna_sweep.distribution(dimension) for dimension in cases] == list(cases.values())


@pytest.mark.slow
def test_end_names_the_best_and_how_to_train_it_where_the_leaderboard_does_not(
    hydra_sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    hydra_sweep(best_at_a_hundredth, *RATES, "sweep.n_trials=3", "seed=4", "monitor=val/loss")
    best = min(read_trials(), key=lambda trial: trial.value or 0)
    value = f"optimizer.lr={best.params['optimizer.lr']!r}"
    printed = capsys.readouterr().out
    assert f"val/loss {best.value:.4f}, trial {best.number}: {value}" in " ".join(printed.split())
    command = f"python -m finetune.train data=imagefolder data.root=. seed=4 monitor=val/loss {value}"
    assert [line.strip() for line in printed.splitlines()].count(command) == 1
