"""From a shell line to a command: paths as they are typed, run folders, one run or a sweep.

Importing this does not import torch.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from finetune.cli import compose, errors, groups, help, schema, validation
from finetune.cli.arguments import expand_resume, quote_paths
from finetune.cli.errors import INTERRUPTED, SOME_FAILED, TERMINATED, USER_ERROR, Exit
from finetune.cli.run_folder import claimed_folders, given_words, recorded_overrides, unique_dir
from finetune.io import paths
from finetune.runtime import process
from finetune.runtime.suggestions import unknown_name

COMMANDS = ("check", "train", "evaluate", "predict", "export", "report", "models", "compare", "cache", "demo")


def console_script() -> None:
    """`finetune <command> ...`: the same commands as `python -m finetune.<command> ...`."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: finetune <command> [key=value ...]\n\ncommands: {', '.join(COMMANDS)}")
        print("`finetune <command> --help` says more of each.")
        sys.exit(0 if len(sys.argv) > 1 else USER_ERROR)
    name = sys.argv[1]
    if name not in COMMANDS:
        errors.fail(unknown_name("command", name, COMMANDS))
    # `finetune.models` is a room too: its command is its __main__
    module = f"finetune.{name}.__main__" if name == "models" else f"finetune.{name}"
    importlib.import_module(module).main(sys.argv[2:])


def hydra_command(
    name: str,
    task: Callable[[DictConfig], float | None],
    argv: Sequence[str] | None = None,
    after_sweep: Callable[[Path], None] | None = None,
) -> None:
    """Compose `conf/<name>.yaml` with the overrides of the shell line and run `task` on it, once or in a sweep.

    Args:
        name: of the command.
        task: what it does.
        argv: the words after the command; None takes those of the shell line.
        after_sweep: is called with the sweep's folder when all its runs have ended.
    """
    shell = list(sys.argv)
    given = list(shell[1:] if argv is None else argv)
    _check_words(name, given)
    given_words[:] = given
    try:
        quoted = quote_paths(expand_resume(given) if name == "train" else given)
    except (OSError, ValueError) as error:
        errors.fail(str(error))
    recorded_overrides[:] = [word for word in quoted if not word.startswith(("-", "hydra.", "hydra/"))]
    claimed_folders.clear()
    OmegaConf.register_new_resolver("unique_dir", unique_dir, replace=True)
    groups.register_models()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell everyone that the home cannot be written to
    jobs = _Jobs(name, task, shell, quoted)
    sys.argv = [shell[0], *quoted]
    try:
        with _terminable():
            if {"--help", "-h"} & set(given):
                help.print_help(name, quoted)
                return
            cfg = _single_run(name, quoted)
            if cfg is not None:
                _run(jobs, cfg)
            else:
                _run_by_hydra(jobs, after_sweep)
            if jobs.failed:
                raise jobs.failed[0]
        if jobs.incomplete:
            sys.exit(SOME_FAILED)
    except Exit as error:
        if not process.is_first_process():
            sys.exit(0)  # Lightning kills the first process where another one ends otherwise
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(errors.report_error(error, name))
    finally:
        sys.argv = shell


@contextmanager
def _terminable() -> Iterator[None]:
    """Within, SIGTERM ends the command as Ctrl-C does, and with a code of its own."""

    def terminated(number: int, frame: object) -> None:
        raise Exit("terminated", TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Jobs:
    """The one run of a command, or those of a sweep, and what became of them."""

    def __init__(
        self, name: str, task: Callable[[DictConfig], float | None], shell: list[str], words: list[str]
    ) -> None:
        self.name, self.task, self.shell, self.words = name, task, shell, words
        self.failed: list[Exception] = []
        self.incomplete: list[Exit] = []
        self.sweep: str | None = None

    def run(self, cfg: DictConfig, check: bool = False) -> float | None:
        """One of them. Errors are kept, past Hydra, which would print its own lines."""
        sys.argv = self.shell  # Lightning starts the other processes of a run with it
        sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
        if sweeps:
            self.sweep = HydraConfig.get().sweep.dir
        try:
            if check:
                validation.validate(cfg, self.name)
            return self.task(cfg)
        except Exit as error:
            if error.code != SOME_FAILED or not sweeps:
                raise
            print(error, file=sys.stderr)  # the other points of a sweep go on
            self.incomplete.append(error)
        except Exception as error:
            errors.log_error(error)
            self.failed.append(error)
            if sweeps:
                _report_job(error, self.words)
                raise  # a sweeper must know; it goes on with the other jobs
        finally:
            if sweeps:
                gc.collect()  # the model and the data of this point, before the next has its own
        return None


def _single_run(name: str, words: Sequence[str]) -> DictConfig | None:
    """The configuration of the one run; None for a sweep, whose first point is checked, and where Hydra does more.

    It shows a configuration (`--cfg`), or takes more from another folder (`--config-dir`).
    """
    flags = {word for word in words if word.startswith("-")}
    if not flags:
        cfg = compose.compose(name, words)
        return cfg if cfg.hydra.mode != RunMode.MULTIRUN else None
    point = compose.first_point([word for word in words if word not in flags])
    if point is not None and flags <= {"-m", "--multirun"}:
        compose.compose(name, point)
    return None


def _run(jobs: _Jobs, cfg: DictConfig) -> None:
    """The one run of what has been composed and checked; `hydra.main` would compose it twice more."""
    with hydra.initialize_config_dir(str(paths.CONF), version_base="1.3", job_name=jobs.name):
        cfg.hydra.mode = RunMode.RUN
        callbacks = Callbacks(cfg)
        callbacks.on_run_start(config=cfg, config_name=jobs.name)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks)
        done = run_job(jobs.run, cfg, job_dir_key="hydra.run.dir", job_subdir_key=None, hydra_context=context)
        callbacks.on_run_end(config=cfg, config_name=jobs.name, job_return=done)
        _ = done.return_value  # raises what is not kept


def _run_by_hydra(jobs: _Jobs, after_sweep: Callable[[Path], None] | None) -> None:
    def job(cfg: DictConfig) -> float | None:
        return jobs.run(cfg, check=True)

    # names the job and its run folder; Hydra would take both from where the function is defined
    job.__module__ = f"finetune.{jobs.name}"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over instead of printing them and exiting with 1
    try:
        hydra.main(version_base="1.3", config_path=str(paths.CONF), config_name=jobs.name)(job)()
    finally:
        if after_sweep is not None and jobs.sweep is not None:
            logging.getLogger("finetune").setLevel(logging.WARNING)  # its lines would be Hydra's too now
            after_sweep(Path(jobs.sweep))
            logging.getLogger("finetune").setLevel(logging.NOTSET)


def _check_words(name: str, words: Sequence[str]) -> None:
    """Words that Hydra would answer with its own usage, or with silence."""
    for key in schema.shipped_keys(f"{name}.yaml"):
        if any(word.split("=")[0] == f"--{key}" for word in words):
            errors.fail(f"Arguments have no dashes here: {key}=...")
        if key == "resume" and {"-m", "--multirun"} & set(words) and any(w.startswith("resume=") for w in words):
            errors.fail("resume= goes on with one run; leave -m out, or give ckpt_path= and the choices to sweep over.")
        if key in ("ckpt", "source", "copy_to") and sum(word.startswith(f"{key}=") for word in words) > 1:
            errors.fail(
                f"{key} is given more than once. For several pictures give a folder, a list (.txt), or a pattern in quotes."
            )


def argparse_command(task: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run a command with positional arguments; errors as `hydra_command` shows them."""
    try:
        task(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        sys.exit(errors.report_error(error, ""))


def _report_job(error: Exception, argv: Sequence[str]) -> None:
    """Name a failed job of a sweep at once; Hydra raises its error again when all jobs are done."""
    cfg = HydraConfig.get()
    given = {word.lower() for word in argv}  # Hydra writes false as False
    own = " ".join(o for o in cfg.overrides.task if o.lower() not in given)
    errors.print_error(f"job {cfg.job.num} ({own}) failed: {errors.explain(error, cfg.job.name)}")
    error.__dict__["reported"] = True
