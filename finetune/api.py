"""Compose a configuration and train from Python, as the commands do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from finetune import train
from finetune.cli.direct import compose_from_python, run_task
from finetune.io.paths import CONF

if TYPE_CHECKING:
    from finetune.reporting.result import TrainingRun

conf_dir = str(CONF)
"""The folder of the YAML files, for `hydra.initialize_config_dir`."""


def run(overrides: Sequence[str], config_dir: str | Path | None = None) -> TrainingRun:
    """Train one model as `python -m finetune.train` does, and return its folder, results, module and data.

    Args:
        overrides: the arguments of the command, one each: `["model=resnet18", "data.root=my photos"]`.
        config_dir: a folder with YAML files of your own, in folders like those of `finetune.conf_dir`.

    Raises:
        FileNotFoundError: a file that the arguments name is not there.
        ValueError: lists what is wrong with the arguments, a line each; or they ask for several runs.
        KeyboardInterrupt: the run was interrupted; the text says how to go on with it.
    """
    cfg = compose_from_python(overrides, "train", config_dir, validate=True)
    return run_task("train", train.fit, cfg).with_best_weights()


def compose(overrides: Sequence[str] = (), command: str = "train", config_dir: str | Path | None = None) -> DictConfig:
    """Compose the configuration of a command; its function takes it: `train.train(compose([...]))`.

    The values can be changed before; the function validates them. `hydra.run.dir` is the run folder, null one with the
    date, as of the command.

    Args:
        overrides: the arguments of the command, one each.
        command: train, evaluate, predict, export, check or rank.
        config_dir: a folder with YAML files of your own, in folders like those of `finetune.conf_dir`.

    Raises:
        FileNotFoundError: a file that the arguments name is not there.
        ValueError: lists the arguments that cannot be composed, a line each; or they ask for several runs.

    >>> import finetune
    >>> cfg = finetune.compose(["model=resnet50", "optimizer.lr=0.01"])
    >>> cfg.model.name, cfg.optimizer.lr, cfg.trainer.max_epochs
    ('resnet50', 0.01, 15)
    """
    return compose_from_python(overrides, command, config_dir, validate=False)
