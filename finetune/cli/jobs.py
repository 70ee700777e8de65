"""Run the jobs of a command: one run, or those of a sweep.

Importing this does not import torch.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hydra
from filelock import Timeout
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from finetune.cli import compose, errors, launchers, points, validation
from finetune.cli.arguments import SWEEP_FLAGS, SWEEP_RECORD, override_key, quote_paths
from finetune.cli.errors import SOME_FAILED, USER_ERROR, Exit, FailedPoint
from finetune.cli.run_folder import STATE
from finetune.cli.space import Choice, is_glob, read_space
from finetune.cli.sweeps import points_at_once
from finetune.io import paths
from finetune.runtime.console import echo, field_line, quiet, short_path
from finetune.runtime.timing import format_duration

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
        self._pid = os.getpid()
        self.errors: list[Exception] = []
        self.incomplete: list[Exit] = []
        """Jobs of a sweep that are done but for some of their inputs."""
        self.results: list[Any] = []
        """What the function returned for each job that did not fail."""
        self.sweep_folder: Path | None = None

    def run(self, cfg: DictConfig, validate: bool = False) -> Any:
        """Run one job, and keep its result."""
        sys.argv = self.shell_argv  # Lightning starts the other processes of a run with it
        is_point = HydraConfig.get().mode == RunMode.MULTIRUN
        result = self._run_point(cfg) if is_point else self._run_alone(cfg, validate)
        self.results.append(result)
        return result

    def _run_alone(self, cfg: DictConfig, validate: bool) -> Any:
        """Run a job that is no point of a sweep. Its error is kept and not raised: Hydra would print its own lines."""
        try:
            if validate:
                validation.validate(cfg, self.command)
            return self.task(cfg)
        except Exception as error:
            errors.log_error(error)
            self.errors.append(error)
        return None

    def _run_point(self, cfg: DictConfig) -> Any:
        """Run a point of a sweep, and keep its state in its folder; its error is told at once, and raised to the sweeper."""
        job = HydraConfig.get()
        self.sweep_folder = sweep = Path(job.sweep.dir)
        folder, configuration = Path(job.runtime.output_dir), points.configuration_id(cfg)
        name = " ".join(self._varied(job.overrides.task)) or f"point {folder.name}"
        with points.held(folder, sweep) as is_free:
            point = points.read_point(folder)
            if not is_free or point.configuration not in ("", configuration):
                what = "it runs in another process" if not is_free else f"{folder} holds another point"
                raise self._failure(
                    FileExistsError(f"{folder}: {what}."), f"job {job.job.num} ({name}) failed: {what}."
                )
            if self.command == "train" and point.state == points.DONE:
                point.write(began=time.time())
                echo(f"{name}: is done\n          {points.describe_progress(sweep)}")
                return point.value
            if point.state == points.FAILED and not (cfg.get("sweep") or {}).get("retry", True):
                point.write(began=time.time())
                raise self._failure(ValueError(point.error), f"{name} has failed before: {point.error}")
            STATE.goes_on = point.can_go_on
            if point.state != points.NEW and not STATE.goes_on and self.command == "train":
                point.clear()
            point = point.write(state=points.RUNNING, began=time.time(), configuration=configuration, error=None)
            return self._run_new_point(cfg, point, name)

    def _run_new_point(self, cfg: DictConfig, point: points.Point, name: str) -> Any:
        """Run a point that is not done; `name` says which it is."""
        sweep, began = Path(HydraConfig.get().sweep.dir), time.time()
        is_quiet = self.command == "train" and not cfg.sweep.get("verbose")
        if is_quiet:
            echo(f"{name}{': goes on' if STATE.goes_on else ''}")
        try:
            with quiet() if is_quiet else nullcontext():
                validation.validate(cfg, self.command)
                result = self.task(cfg)
        except Exit as error:
            if error.code != SOME_FAILED:
                point.end(points.INTERRUPTED)
                text = f"interrupted; {points.describe_progress(sweep)}"
                if self._is_elsewhere():  # whose launcher waits for a result
                    raise FailedPoint(text) from error
                raise Exit(text, error.code) from error
            print(error, file=sys.stderr)  # the other jobs of a sweep go on
            self.incomplete.append(error)
            result = None
        except Exception as error:
            errors.log_error(error)
            sentence = errors.explain(error, self.command)
            job = f"job {HydraConfig.get().job.num}"
            same = [point.folder.name for point in points.read_asked(sweep) if point.error == sentence]
            told = f"failed as job {same[0]} did." if same else f"failed: {sentence}"
            out_of_time = errors.is_of_submitit(error)
            point.end(points.INTERRUPTED if out_of_time else points.FAILED, error=sentence)
            failure = self._failure(error, f"{job} ({name}) {told}")
            raise failure from (None if failure is error else error)
        except BaseException:
            point.end(points.INTERRUPTED)
            raise
        finally:
            gc.collect()  # the model and the data of this job, before the next has its own
        value = float(result) if isinstance(result, int | float) else None
        point.end(points.DONE, value=value)
        if is_quiet:
            text = "no value" if value is None else f"{cfg.monitor} {value:.4f}"
            echo(f"          {text}, {format_duration(time.time() - began)}, {short_path(sweep / point.folder.name)}")
            echo(f"          {points.describe_progress(sweep)}")
        return result

    def _varied(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides of a point that are not those of all points."""
        common = {override.lower() for override in self.overrides}  # Hydra writes false as False
        return [o for o in overrides if o.lower() not in common and not override_key(o).startswith("sweep")]

    def _failure(self, error: Exception, text: str) -> Exception:
        """Name a failed point at once; return what a sweeper gets, which Hydra raises again when all points have ended."""
        errors.print_error(text)
        if self._is_elsewhere():  # what it raises must survive being sent
            error = FailedPoint(text)
        error.__dict__["reported"] = True
        self.errors.append(error)
        return error

    def _is_elsewhere(self) -> bool:
        """Return whether this is a launcher's process, and not the one that the sweep was started in."""
        return os.getpid() != self._pid

    def say_what_is_left(self) -> None:
        """Say how to run again the points of a sweep that have failed, or were stopped in another process."""
        assert self.sweep_folder is not None
        found = points.read_asked(self.sweep_folder)
        failed = [point for point in found if point.state == points.FAILED]
        if (self.sweep_folder / ".submitit").exists():  # where its jobs have said it
            for point in failed:
                errors.print_error(f"{self.sweep_folder / point.folder.name}: {point.error}")
        stopped = sum(point.state in (points.RUNNING, points.INTERRUPTED) for point in found)
        words = [
            f"{n} of {len(found)} points {word}" for n, word in ((len(failed), "failed"), (stopped, "stopped")) if n
        ]
        if words and self.command == "train":
            again = (
                f"python -m finetune.train {shlex.quote(f'resume={self.sweep_folder}')}"  # in one piece, to be copied
            )
            echo(f"{field_line('Left', ', '.join(words) + '; to run them again:')}\n{'':<10}{again}")


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
        # those that ran in other processes have left their values
        return runner.results or [point.value for point in points.read_asked(runner.sweep_folder)]
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
    except BaseException:
        STATE.restore_record()
        raise
    finally:
        runner.sweep_folder = STATE.sweep_folder
        if after_sweep is not None and runner.sweep_folder is not None:
            logging.getLogger("finetune").setLevel(logging.WARNING)  # its lines would be Hydra's too now
            after_sweep(runner.sweep_folder)
            runner.say_what_is_left()
            logging.getLogger("finetune").setLevel(logging.NOTSET)
        STATE.release()


def _raise_error(job: JobReturn) -> NoReturn:
    raise job._return_value


class _ToldJob(JobReturn):
    """A failed job of a sweep, which has been told: Hydra's would print all its overrides where a sweeper reads it."""

    return_value = property(_raise_error)


class SweepStart(Callback):
    """Fixes the folder of a sweep, for the processes of all launchers, and keeps other sweeps out of it; Hydra calls it."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Let a sweeper read the result of a failed job without a second report of its error."""
        if job_return.status is JobStatus.FAILED and job_return._return_value.__dict__.get("reported"):
            job_return.__class__ = _ToldJob

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Claim the folder before the sweeper starts.

        Raises:
            Exit: another process runs a sweep there.
        """
        try:
            self._claim(config, Path(str(config.hydra.sweep.dir)))
        except Timeout as error:
            text = f"error: {config.hydra.sweep.dir}: another process is running this sweep."
            raise Exit(text, USER_ERROR) from error
        except Exception as error:  # Hydra would make a warning of it, and start the sweep
            raise Exit(f"error: {errors.explain(error, 'train')}", USER_ERROR) from error

    def _claim(self, config: DictConfig, folder: Path) -> None:
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(quote_paths([f"hydra.sweep.dir={folder}"])[0])
        folder.mkdir(parents=True, exist_ok=True)
        STATE.claim_sweep(folder)
        OmegaConf.save(config, folder / SWEEP_RECORD)  # from which `resume=` repeats it
        count = count_points(config)
        points.write_sweep(folder, count)
        launchers.prepare_launcher(config, points_at_once(config, count))


def count_points(config: DictConfig) -> int | None:
    """Return how many points a sweep will have; None where its sweeper alone knows."""
    trials = OmegaConf.select(config, "sweep.n_trials")
    if trials is not None:
        return int(trials)
    words = list(config.hydra.overrides.task)
    if any(is_glob(word) for word in words):
        return None
    dimensions = read_space(config, words).dimensions.values()
    sizes = [len(dimension.values) if isinstance(dimension, Choice) else None for dimension in dimensions]
    return None if None in sizes else math.prod(size or 0 for size in sizes)
