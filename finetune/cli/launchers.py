"""Share this machine out among the points of a sweep that run at the same time.

Importing this does not import torch.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from finetune.runtime import process
from finetune.runtime.console import echo, field_line


def share_out(config: DictConfig, points: int | None) -> None:
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
    elif launcher == "LocalLauncher":  # submitit starts all of them at once
        at_once = points or process.cpu_count()
        if at_once > process.cpu_count():
            text = f"submitit_local starts all {points} points at once on {process.cpu_count()} cores; hydra/launcher=joblib"
            echo(field_line("Note", f"{text} starts as many as there are cores, or hydra.launcher.n_jobs=N of them."))
    else:
        return
    _override(config, f"hydra.job.env_set.{process.RUNS_AT_ONCE}", at_once)


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
    with read_write(config), open_dict(config):
        OmegaConf.update(config, key, str(value) if ".env_set." in key else value)
        config.hydra.overrides.hydra.append(f"++{key}={value}")
