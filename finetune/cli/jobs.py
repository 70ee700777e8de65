"""Run the jobs of a command: one run, or those of a sweep.

Importing this does not import torch.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from finetune.cli import compose, errors, validation
from finetune.cli.arguments import SWEEP_FLAGS
from finetune.cli.errors import SOME_FAILED, Exit
from finetune.io import paths

Task = Callable[[DictConfig], Any]
"""The function of a command: a configuration in, its result out, which for a sweeper is a number."""


class JobRunner:
    """Run the jobs of a command and keep their errors.

    Args:
        command: its name.
        task: the function of the command.
        shell_argv: `sys.argv` as the shell gave it.
        overrides: arguments as Hydra takes them.
    """

    def __init__(self, command: str, task: Task, shell_argv: list[str], overrides: list[str]) -> None:
        """Name the command and its task."""
        self.command, self.task, self.shell_argv, self.overrides = command, task, shell_argv, overrides
        self.errors: list[Exception] = []
        self.incomplete: list[Exit] = []
        """Jobs of a sweep that are done but for some of their inputs."""
        self.results: list[Any] = []
        """What the function returned for each job that did not fail."""
        self.sweep_folder: Path | None = None

    def run(self, cfg: DictConfig, validate: bool = False) -> Any:
        """Run one job, and keep its result."""
        result = self._run(cfg, validate)
        self.results.append(result)
        return result

    def _run(self, cfg: DictConfig, validate: bool) -> Any:
        """Run one job. Its error is kept and not raised, except in a sweep: Hydra would print its own lines."""
        sys.argv = self.shell_argv  # Lightning starts the other processes of a run with it
        is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        if is_sweep:
            self.sweep_folder = Path(HydraConfig.get().sweep.dir)
        try:
            if validate:
                validation.validate(cfg, self.command)
            return self.task(cfg)
        except Exit as error:
            if error.code != SOME_FAILED or not is_sweep:
                raise
            print(error, file=sys.stderr)  # the other jobs of a sweep go on
            self.incomplete.append(error)
        except Exception as error:
            errors.log_error(error)
            self.errors.append(error)
            if is_sweep:
                self._report_failed_job(error)
                raise  # a sweeper must know; it goes on with the other jobs
        finally:
            if is_sweep:
                gc.collect()  # the model and the data of this job, before the next has its own
        return None

    def _report_failed_job(self, error: Exception) -> None:
        """Name a failed job of a sweep at once; Hydra raises its error again when all jobs are done."""
        cfg = HydraConfig.get()
        common = {override.lower() for override in self.overrides}  # Hydra writes false as False
        varied = " ".join(override for override in cfg.overrides.task if override.lower() not in common)
        errors.print_error(f"job {cfg.job.num} ({varied}) failed: {errors.explain(error, cfg.job.name)}")
        error.__dict__["reported"] = True


def run_jobs(runner: JobRunner, after_sweep: Callable[[Path], None] | None) -> Any:
    """Run the jobs of a command.

    Args:
        runner: of the command.
        after_sweep: is called with the sweep's folder when all its jobs have ended.

    Returns:
        What the function of the command returned; of a sweep, a list of that for each job.

    Raises:
        Exception: the error of the first job that failed.
        SystemExit: some jobs of a sweep could not process all their inputs.
    """
    cfg = _compose_single_run(runner.command, runner.overrides)
    if cfg is not None:
        run_single(runner, cfg)
    else:
        _run_by_hydra(runner, after_sweep)
    if runner.errors:
        raise runner.errors[0]
    if runner.incomplete:
        sys.exit(SOME_FAILED)
    if runner.sweep_folder is not None:
        return runner.results
    return runner.results[0] if runner.results else None  # `--cfg job` runs nothing


def _compose_single_run(command: str, overrides: Sequence[str]) -> DictConfig | None:
    """Compose and validate the configuration of a single run.

    Return None for a sweep, whose first point is validated here, and where Hydra does more: it shows a configuration
    (`--cfg`), or takes more from another folder (`--config-dir`).
    """
    flags = {word for word in overrides if word.startswith("-")}
    if not flags:
        cfg = compose.compose(command, overrides)
        return cfg if cfg.hydra.mode != RunMode.MULTIRUN else None
    if flags <= SWEEP_FLAGS:
        compose.compose_first_point(command, [word for word in overrides if word not in flags])
    return None


def run_single(runner: JobRunner, cfg: DictConfig, configure_logging: bool = True) -> Any:
    """Run what has been composed and validated, and return its result; `hydra.main` would compose it twice more.

    Args:
        runner: of the command; it keeps an error.
        cfg: with Hydra's own node.
        configure_logging: whether the root logger is set up as the configuration says; it closes all other handlers.
    """
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3", job_name=runner.command):
        cfg.hydra.mode = RunMode.RUN
        callbacks = Callbacks(cfg)
        callbacks.on_run_start(config=cfg, config_name=runner.command)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks)
        result = run_job(runner.run, cfg, "hydra.run.dir", None, context, configure_logging)
        callbacks.on_run_end(config=cfg, config_name=runner.command, job_return=result)
        return result.return_value  # raises an error that `runner` did not keep


def _run_by_hydra(runner: JobRunner, after_sweep: Callable[[Path], None] | None) -> None:
    def job(cfg: DictConfig) -> Any:
        return runner.run(cfg, validate=True)

    # names the job and its run folder; Hydra would take both from where the function is defined
    job.__module__ = f"finetune.{runner.command}"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over instead of printing them and exiting with 1
    try:
        hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name=runner.command)(job)()
    finally:
        if after_sweep is not None and runner.sweep_folder is not None:
            logging.getLogger("finetune").setLevel(logging.WARNING)  # its lines would be Hydra's too now
            after_sweep(runner.sweep_folder)
            logging.getLogger("finetune").setLevel(logging.NOTSET)
