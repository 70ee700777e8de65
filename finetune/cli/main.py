"""Entry points of the command line: the console script, commands with Hydra, commands with positional arguments.

Importing this does not import torch.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from finetune.cli import completion, errors, groups, help, run_folder
from finetune.cli.arguments import prepare_arguments
from finetune.cli.errors import TERMINATED, USER_ERROR, Exit
from finetune.cli.jobs import JobRunner, Task, run_jobs
from finetune.cli.recipes import expand_recipes
from finetune.runtime import process
from finetune.runtime.suggestions import unknown_name

COMMANDS = {
    "check": "look for what is wrong with the data, before anything is trained",
    "rank": "which pretrained backbone suits the data",
    "train": "train a model on a folder of images",
    "evaluate": "how good a checkpoint is, on the images held out or on others",
    "predict": "labels and probabilities of images",
    "export": "a file for other programs: ONNX, torch.export, safetensors",
    "report": "write the page of a run again",
    "compare": "runs, sweeps or evaluations side by side",
    "soup": "average the weights of several runs",
    "models": "list the models by name",
    "cache": "list or clear kept features, pixels and archives",
    "demo": "what pretrained weights are worth, offline",
}
"""Name to what it does."""


def console_script() -> None:
    """Run `finetune <command> ...`, the same as `python -m finetune.<command> ...`."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first == "--version":
        print(f"finetune {process.package_version()}")
        return
    if first == "--complete":  # what the script of --completion asks
        print("\n".join(completion.complete(" ".join(sys.argv[2:]), COMMANDS)))
        return
    if first == "--completion":
        shell = " ".join(sys.argv[2:]) or "bash"
        if shell not in completion.SCRIPTS:
            errors.fail(unknown_name("shell", shell, completion.SCRIPTS, "It is bash or zsh."))
        print(completion.SCRIPTS[shell], end="")
        return
    if first in ("", "-h", "--help", "help"):
        _print_usage()
        sys.exit(0 if first else USER_ERROR)
    name = first
    if name not in COMMANDS:
        errors.fail(unknown_name("command", name, COMMANDS))
    # `finetune.models` is a room too: its command is its __main__
    module = f"finetune.{name}.__main__" if name == "models" else f"finetune.{name}"
    importlib.import_module(module).main(sys.argv[2:])


def _print_usage() -> None:
    print("usage: finetune <command> [key=value ...]      (or python -m finetune.<command>)\n")
    for name, meaning in COMMANDS.items():
        print(f"  {name:<10}{meaning}")
    print("\n`finetune <command> --help` says more, `finetune --version` which version it is;")
    print('`eval "$(finetune --completion bash)"`, or zsh, lets the tab key complete words.')
    print("Begin with: finetune train data=imagefolder data.root=FOLDER")


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
            if "--version" in typed:
                print(f"finetune {process.package_version()}")
            elif {"--help", "-h"} & set(typed):
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
        task(argv)


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
