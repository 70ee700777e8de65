"""Make the loggers that a configuration names, each guarded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from finetune.cli import instantiate
from finetune.cli.logger_keys import logger_specs
from finetune.io import paths
from finetune.tracking.lightning_tracker import LightningTracker
from finetune.tracking.run_logger import RunLogger
from finetune.tracking.tracked_run import TrackedRun, git_commit
from finetune.tracking.tracker import Tracker


def make_loggers(cfg: DictConfig, folder: Path, model: str) -> list[RunLogger]:
    """Make the loggers of a run; metrics.csv is written in any case.

    Args:
        cfg: of the run.
        folder: of the run.
        model: its name.

    Raises:
        ValueError: a class is not allowed, takes other arguments, or its package is not installed.
    """
    specs = logger_specs(cfg.get("logger"))
    if not specs:
        return []
    run = describe_run(cfg, folder, model)
    return [RunLogger(_make_tracker(name, spec), run) for name, spec in specs.items()]


def _make_tracker(name: str, spec: dict[str, Any]) -> Tracker:
    make = instantiate.factory(spec, (Tracker, Logger))
    try:
        made: Any = make()
    except ImportError as error:
        raise ValueError(f"logger={name} needs a package that is not installed ({error}).") from error
    except Exception:
        if issubclass(make.func, Tracker):  # type: ignore[arg-type]
            raise
        return LightningTracker(name, make)  # it may have no connection: tried again when the run begins, and told
    return made if isinstance(made, Tracker) else LightningTracker(name, lambda: made)


def describe_run(cfg: DictConfig, folder: Path, model: str) -> TrackedRun:
    """Return what trackers are told of a run."""
    hydra_config = HydraConfig.get()
    choices = {group: hydra_config.runtime.choices.get(group) for group in ("data", "strategy")}
    root = cfg.data.get("root")
    if root is not None and choices["data"] in (None, "imagefolder", "csv"):
        choices["data"] = Path(str(root)).expanduser().absolute().name
    commit = git_commit(Path.cwd())
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    # points that go on from one and the same checkpoint are runs of their own, each by the ids in its own folder
    resumed = cfg.ckpt_path is not None and not in_sweep
    last = paths.last_checkpoint_path(str(cfg.ckpt_path)) if resumed else None
    return TrackedRun(
        folder=folder.absolute(),
        config=config,
        tags={
            "model": model,
            "strategy": choices["strategy"] or "custom",
            "data": choices["data"] or "custom",
            **({"git_commit": commit} if commit else {}),
        },
        sweep=Path(hydra_config.sweep.dir).absolute() if in_sweep else None,
        resumed=last.absolute().parent.parent if last is not None else None,
    )
