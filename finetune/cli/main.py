"""Entry points of the command line: the console script, commands with Hydra, commands with positional arguments.

Importing this does not import torch.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from finetune.cli import errors, groups, help, run_folder
from finetune.cli.arguments import prepare_arguments
from finetune.cli.errors import TERMINATED, USER_ERROR, Exit
from finetune.cli.jobs import JobRunner, Task, run_jobs
from finetune.cli.recipes import expand_recipes
from finetune.runtime import process
from finetune.runtime.suggestions import unknown_name

COMMANDS = (
    "check", "rank", "train", "evaluate", "predict", "export", "report", "models", "compare", "soup", "cache", "demo",
)  # fmt: skip


def console_script() -> None:
    """Run `finetune <command> ...`, the same as `python -m finetune.<command> ...`."""
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
    task: Task,
    argv: Sequence[str] | None = None,
    after_sweep: Callable[[Path], None] | None = None,
) -> Any:
    """Compose `conf/<name>.yaml` with the overrides of the shell line and run `task` on it, once or in a sweep.

    Args:
        name: of the command.
        task: the function of the command.
        argv: the arguments after the command; None takes those of the shell line.
        after_sweep: is called with the sweep's folder when all its runs have ended.

    Returns:
        What `task` returns; of a sweep, a list with the value of each of its jobs.
    """
    shell_argv, hydra_config = list(sys.argv), HydraConfig.instance().cfg
    typed = list(shell_argv[1:] if argv is None else argv)
    try:
        with errors.exit_codes(name), _signals_end_command():
            overrides = prepare_arguments(name, expand_recipes(typed) if name == "train" else typed)
            run_folder.STATE.start(typed, overrides)
            _prepare_hydra()
            sys.argv = [shell_argv[0], *overrides]  # from which `hydra.main` reads its own
            if {"--help", "-h"} & set(typed):
                help.print_help(name, overrides)
            else:
                return run_jobs(JobRunner(name, task, shell_argv, overrides), after_sweep)
    finally:
        sys.argv = shell_argv
        HydraConfig.instance().cfg = hydra_config  # `hydra.main` leaves its own
    return None


def argparse_command(task: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run a command with positional arguments; errors are shown as `hydra_command` shows them."""
    with errors.exit_codes(""):
        try:
            task(argv)
        except BrokenPipeError:  # the reader, `head` for example, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_hydra() -> None:
    """Register the user's own models, and silence matplotlib."""
    groups.register_models()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would warn of a home that cannot be written to


@contextmanager
def _signals_end_command() -> Iterator[None]:
    """End the command on SIGTERM as on Ctrl-C, with an exit code of its own; let Slurm requeue its job on SIGUSR1.

    A training hears the signals itself, and saves first.
    """

    def terminate(number: int, frame: object) -> None:
        raise Exit("terminated", TERMINATED)

    def requeue(number: int, frame: object) -> None:
        process.requeue()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    if process.is_slurm_task() and process.slurm_job() and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, requeue)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
