"""Give the launchers of sweeps defaults that suit trainings: shares of the cores, and jobs that go on after their time is up.

Importing this does not import torch.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from finetune.cli.arguments import override_key
from finetune.runtime import process
from finetune.runtime.console import echo, field_line

TIMEOUTS = 100
"""How often submitit starts a job again whose time is up. The plugin's default is never, because not all code can go on."""

SETUP = '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
"""Line of a batch script before srun, which since Slurm 22.05 does not take the cores of its job by itself."""


def prepare_launcher(config: DictConfig, points: int | None) -> None:
    """Let a launcher that runs points side by side run as many as there are cores, each with its share of them.

    Args:
        config: with Hydra's own node, before its launcher is made; it is changed.
        points: of the sweep; None where its sweeper alone knows.
    """
    launcher = str(OmegaConf.select(config, "hydra.launcher._target_")).rpartition(".")[2]
    if launcher == "JoblibLauncher":
        at_once = _joblib_processes(config)
        at_once = min(at_once, points or at_once)
        _override(config, "hydra.launcher.n_jobs", at_once)
        _override(config, f"hydra.job.env_set.{process.RUNS_AT_ONCE}", at_once)
    elif launcher == "LocalLauncher":
        at_once = points or process.cpu_count()
        if at_once > process.cpu_count():
            text = f"submitit_local starts all {points} points at once on {process.cpu_count()} cores; hydra/launcher=joblib"
            echo(field_line("Note", f"{text} starts as many as there are cores, or hydra.launcher.n_jobs=N of them."))
        _override(config, f"hydra.job.env_set.{process.RUNS_AT_ONCE}", at_once)
    elif launcher == "SlurmLauncher":
        given = {override_key(word) for word in config.hydra.overrides.hydra}
        for key, value in (("max_num_timeout", TIMEOUTS), ("setup", [SETUP])):
            if f"hydra.launcher.{key}" not in given:
                _update(config, f"hydra.launcher.{key}", value)


def _joblib_processes(config: DictConfig) -> int:
    """Return how many processes joblib starts; -1 means all cores, -2 all but one."""
    given = int(config.hydra.launcher.n_jobs)
    if given > 0:
        return given
    if given == -1 and OmegaConf.select(config, "trainer.accelerator") != "cpu" and Path("/dev/nvidia0").exists():
        text = "one point runs at a time, because all of them would take the same GPU; hydra.launcher.n_jobs=N lets N share it."
        echo(field_line("Note", text))
        return 1
    return max(1, process.cpu_count() + 1 + given)


def _override(config: DictConfig, key: str, value: object) -> None:
    """Set a key of Hydra's own node, for this process and for those of the launcher, which compose again."""
    _update(config, key, value)
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra.append(f"++{key}={value}")


def _update(config: DictConfig, key: str, value: object) -> None:
    with read_write(config), open_dict(config):
        OmegaConf.update(config, key, value)
