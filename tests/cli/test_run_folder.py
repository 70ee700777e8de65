"""Test `finetune.cli.run_folder`."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from finetune.cli import run_folder
from finetune.cli.run_folder import CommandState, unique_dir


def test_unique_dir_never_gives_a_folder_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tmp_path)
    first = unique_dir(base, "now")
    assert unique_dir(base, "now") == first  # Hydra asks several times
    run_folder.STATE.folders.clear()
    assert unique_dir(base, "now") == f"{base}/now_1"


def test_claim_folder_belongs_to_one_run(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"a": 1})
    run_folder.claim_folder(cfg, tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "a: 1\n"
    with pytest.raises(FileExistsError, match="holds another run"):
        run_folder.claim_folder(cfg, tmp_path / "run")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the variables of the environment that Slurm would: `slurm(JOB_ID=42)`; they replace those before."""

    def set_variables(**values: object) -> None:
        for key in [key for key in os.environ if key.startswith("SLURM_")]:
            monkeypatch.delenv(key)
        for key, value in values.items():
            monkeypatch.setenv(f"SLURM_{key}", str(value))
        run_folder.STATE.folders.clear()

    return set_variables


@pytest.mark.parametrize("base", ["train", "train/sweeps"])
def test_a_requeued_job_of_slurm_finds_the_folder_of_its_command(
    base: str, slurm: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / base)
    monkeypatch.setattr(run_folder.STATE, "overrides", ["seed=1"])
    slurm(JOB_ID=42)
    first = unique_dir(root, "now")
    assert first == f"{root}/slurm_42"
    slurm(JOB_ID=42, RESTART_COUNT=1)
    assert unique_dir(root, "later") == first  # it was stopped before it had written anything
    if base == "train":
        (Path(first) / ".hydra").mkdir()
        (Path(first) / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    else:
        (Path(first) / "multirun.yaml").write_text("hydra: {overrides: {task: [seed=1]}}\n")
    slurm(JOB_ID=42, RESTART_COUNT=1)
    assert unique_dir(root, "later") == first
    monkeypatch.setattr(run_folder.STATE, "overrides", ["seed=2"])  # a second command of the same job
    slurm(JOB_ID=42, RESTART_COUNT=1)
    assert unique_dir(root, "later") == f"{root}/slurm_42_1"


def test_processes_but_the_first_leave_no_folder_and_know_that_of_the_first(
    slurm: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []
    monkeypatch.setattr(atexit, "register", lambda f, path, ignore_errors: removed.append(path))
    cfgs = [OmegaConf.create({"seed": seed, "logger": {"save_dir": "a"}}) for seed in (1, 2)]
    slurm(JOB_ID=42)
    for cfg in cfgs:  # the job trains twice
        folder = Path(unique_dir(str(tmp_path), "now"))
        run_folder.claim_folder(cfg, folder)
        run_folder.STATE.folders.clear()
    slurm(JOB_ID=42, RESTART_COUNT=1, PROCID=1)
    own = Path(unique_dir(str(tmp_path), "now"))
    assert removed == [own]
    assert tmp_path not in own.parents
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slurm_42", "slurm_42_1"]
    other = OmegaConf.create({"seed": 2, "logger": {"save_dir": "b"}})  # its logger writes into its own folder
    assert run_folder.first_folder(other, own) == tmp_path / "slurm_42_1"
    own.rmdir()


def test_a_requeued_job_goes_on_in_a_folder_that_was_given(slurm: Callable[..., None], tmp_path: Path) -> None:
    slurm(JOB_ID=42)
    run_folder.claim_folder(OmegaConf.create({"seed": 1}), tmp_path)
    slurm(JOB_ID=42, RESTART_COUNT=1)
    run_folder.claim_folder(OmegaConf.create({"seed": 1}), tmp_path)
    with pytest.raises(FileExistsError, match="holds another run"):
        run_folder.claim_folder(OmegaConf.create({"seed": 2}), tmp_path)


def test_a_requeued_job_knows_its_folder_whose_configuration_stands_there_without_passwords(
    slurm: Callable[..., None], tmp_path: Path
) -> None:
    cfg, other = (
        OmegaConf.create({"seed": 1, "sweep": {"storage": f"mysql://me:it's%20secret@{host}/db"}})
        for host in ("a", "b")
    )
    slurm(JOB_ID=42)
    run_folder.claim_folder(cfg, tmp_path)
    recorded = OmegaConf.load(tmp_path / "config.yaml")
    assert recorded == {"seed": 1, "sweep": {"storage": "mysql://a/db"}}
    slurm(JOB_ID=42, RESTART_COUNT=1)
    run_folder.claim_folder(cfg, tmp_path)
    with pytest.raises(FileExistsError, match="holds another run"):
        run_folder.claim_folder(other, tmp_path)


def test_a_requeued_job_knows_its_folder_in_which_the_rate_that_it_found_stands(
    slurm: Callable[..., None], tmp_path: Path
) -> None:
    slurm(JOB_ID=42, RESTART_COUNT=1)
    (tmp_path / "config.yaml").write_text("seed: 1\noptimizer: {_target_: torch.optim.SGD, lr: 0.0123}\n")

    def claim(target: str, lr: float | str) -> None:
        cfg = OmegaConf.create({"seed": 1, "optimizer": {"_target_": target, "lr": lr}})
        run_folder.claim_folder(cfg, tmp_path)

    claim("torch.optim.SGD", "auto")
    for target, lr in (("torch.optim.SGD", 0.5), ("torch.optim.Adam", "auto")):
        with pytest.raises(FileExistsError, match="holds another run"):
            claim(target, lr)


ONE, TWO = ({"trainer": {"devices": devices, "num_nodes": 1}} for devices in (1, 2))


@pytest.mark.parametrize(
    ("cfg", "variables", "refused"),
    [
        (ONE, {"JOB_ID": 42}, ""),
        (ONE, {"JOB_ID": 42, "NTASKS": 1, "STEP_ID": 0}, ""),
        (ONE, {"JOB_ID": 42, "NTASKS": 2, "STEP_ID": 0}, "2 processes were started for one that runs on one device"),
        ({}, {"JOB_ID": 42, "NTASKS": 2, "STEP_ID": 0}, "2 processes were started for one that runs on one device"),
        (TWO, {"JOB_ID": 42, "NTASKS": 2, "STEP_ID": 0}, ""),
        (TWO, {"JOB_ID": 42, "NTASKS": 2}, r"tasks: 2, trainer\.num_nodes=1\) and not one of its tasks"),
        (TWO, {"JOB_ID": 42}, ""),  # Lightning starts the other process
        ({}, {"JOB_ID": 42, "NTASKS": 2}, ""),  # it does not use its second task
        ({"trainer": {"devices": 1, "num_nodes": 2}}, {"JOB_ID": 42}, r"tasks: 1, trainer\.num_nodes=2\)"),
        (ONE, {"JOB_ID": 42, "NTASKS": 2, "JOB_NAME": "interactive"}, ""),
    ],
)
def test_processes_that_nobody_starts_or_needs_are_refused(
    cfg: dict[str, object], variables: dict[str, object], refused: str, slurm: Callable[..., None]
) -> None:
    slurm(**variables)
    node = OmegaConf.create(cfg)
    assert isinstance(node, DictConfig)
    if not refused:
        run_folder._require_processes(node, "train")
        return
    with pytest.raises(ValueError, match=refused):
        run_folder._require_processes(node, "train")


def test_the_time_of_a_run_counts_from_its_command_and_in_a_sweep_from_its_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    state = CommandState()
    began = []
    moments = ((10.0, 15.0, True), (None, 20.0, True), (30.0, 33.0, False), (None, 40.0, False))
    for started, run, alone in moments:
        if started is not None:
            now[0] = started
            state.start([], [])
        now[0] = run
        state.begin_run(alone)
        began.append(state.began)
    assert began == [
        10,
        20,
        33,
        40,
    ]  # the second is of an application of the user's own, which starts no command of ours
