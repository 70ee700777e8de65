"""Turn errors into sentences and exit codes: the user can correct some, others are bugs, others are neither.

Importing this does not import torch.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from finetune.cli import compose
from finetune.io import paths
from finetune.runtime import console, process
from finetune.runtime.passwords import without_password

HYDRA_COMMANDS = ("check", "train", "evaluate", "predict", "export", "rank")

BUG, USER_ERROR, SOME_FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143


class Exit(BaseException):
    """End the command, with a message and an exit code of its own. Not an Exception: it ends a sweep as well."""

    def __init__(self, message: str, code: int, value: object = None) -> None:
        """Keep the exit code beside the message, and what the function of the command would have returned."""
        super().__init__(message)
        self.code, self.value = code, value


class FailedPoint(Exception):
    """Say that a point of a sweep failed in another process, where its error has been told."""


@contextmanager
def exit_codes(name: str) -> Iterator[None]:
    """End the process with a message and an exit code where the command `name` raises."""
    try:
        with console.unbroken_output():
            yield
    except Exit as error:
        if not process.is_first_process():
            sys.exit(0)  # Lightning kills the first process where another one ends otherwise
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(report_error(error, name))


def report_error(error: Exception, name: str) -> int:
    """Print an error of a command, with its traceback if it is a bug, and return the exit code."""
    if os.environ.get("FINETUNE_DEBUG") == "1" or not (is_user_error(error) or _is_lost_connection(error)):
        traceback.print_exception(error)
    if not vars(error).get("reported") and not isinstance(error, FailedPoint):
        print_error(explain(error, name))
    return USER_ERROR if is_user_error(error) else BUG


def log_error(error: Exception) -> None:
    """Write an error with its traceback to the log of its run; the terminal gets less."""
    record = logging.LogRecord(
        "finetune", logging.ERROR, __file__, 0, "stopped", None, (type(error), error, error.__traceback__)
    )
    # those of the package are there where the run was started from Python, and the root's are the caller's
    for handler in logging.getLogger("finetune").handlers or logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def fail(message: str) -> NoReturn:
    """End the command with an error that the user can correct."""
    print_error(message)
    sys.exit(USER_ERROR)


def print_error(message: str) -> None:
    """Print an error on standard error; wrapped where it is a terminal."""
    text = f"error: {message}"
    if sys.stderr.isatty():
        text = "\n".join(map(_wrap, text.splitlines()))
    print(text, file=sys.stderr, flush=True)


def _wrap(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return fill(line, 80, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)


def is_user_error(error: BaseException) -> bool:
    """Return whether the user can correct it: a configuration error, or a ValueError or OSError of this package."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    # by name: Lightning's class would import torch, and the other is raised again by a worker process in torch's code
    if type(error).__name__ in ("MisconfigurationException", "BadImageError", "FailedPoint"):
        return True
    if isinstance(error, PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return True
    if isinstance(error, OSError) and error.errno in paths.UNWRITABLE_ERRNOS:
        return True
    if _lost_worker(error) is not None or is_of_submitit(error):
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    package = Path(__file__).resolve().parents[1]
    in_package = bool(innermost) and Path(innermost[0].filename).resolve().is_relative_to(package)
    in_mkdir = bool(innermost) and innermost[0].name == "mkdir"
    return isinstance(error, ValueError | FileNotFoundError) and (in_package or in_mkdir)


def _lost_worker(error: BaseException | None) -> BaseException | None:
    """Return the error of a process that decodes images, which has died or has found no shared memory; else None.

    torch raises it in the main process wherever that happens to be, so that it may be the cause of another error.
    """
    pattern = r"DataLoader worker \(pid|DataLoader timed out|shared memory|unable to (?:mmap|open shared)"
    while error is not None:
        if isinstance(error, EOFError | ConnectionError | FileNotFoundError):  # it died while it handed over a batch
            if any(frame.name == "_try_get_data" for frame in traceback.extract_tb(error.__traceback__)):
                return error
        elif isinstance(error, RuntimeError) and re.search(pattern, str(error)):
            return error
        error = error.__cause__
    return None


def is_of_submitit(error: BaseException) -> bool:
    """Return whether submitit says that Slurm did not take a job, or that a job has ended without a result."""
    if type(error).__module__.startswith("submitit."):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, RuntimeError) and bool(frames) and "submitit" in Path(frames[-1].filename).parts


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether a process failed because it could no longer reach the others, in the words of gloo or NCCL."""
    return isinstance(error, RuntimeError) and re.search(r"\b(gloo|NCCL|ProcessGroup\w*)\b", str(error)) is not None


def explain(error: BaseException, name: str) -> str:
    """Return an error of the command `name` as a paragraph: what was given, what is known and what to do.

    Passwords of addresses are left out: it is shown, logged and kept in the state of a sweep's point.
    """
    return without_password(_explain(error, name))


def _explain(error: BaseException, name: str) -> str:
    if _is_lost_connection(error):
        return (
            "another process of this run has ended or does not answer; what it said stands above, or in its log in the "
            f"run's folder, with all of this: {str(error).strip().splitlines()[0][:200]}"
        )
    lost_worker = _lost_worker(error)
    if lost_worker is not None:
        reason = (str(lost_worker).strip() or type(lost_worker).__name__).splitlines()[-1]
        return (
            f"a process that decodes images has died ({reason}). Most often it has too little memory, or too "
            "little shared memory (docker run --shm-size=1g); data.num_workers=0 needs none. resume=RUN goes on."
        )
    if is_of_submitit(error):
        first, *rest = [line.strip().rstrip(".") for line in str(error).strip().splitlines()]
        if first.startswith("Job "):  # what follows is in its log too
            return f"hydra/launcher: {first}. What it has said is in .submitit in the sweep's folder."
        return f"hydra/launcher: {'; '.join([first, *rest])}."
    if not is_user_error(error):
        return f"{type(error).__name__}: {error}\nThis looks like a bug in finetune; please report it with the lines above."
    if isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, OSError):
        error = error.__cause__  # the run's folder could not be made
    if isinstance(error, HydraException | OmegaConfBaseException):
        return compose.explain_composition(error, name)
    if isinstance(error, OSError) and error.strerror:
        hint = " hydra.run.dir=FOLDER chooses another place for the run." if name in HYDRA_COMMANDS else ""
        return f"{error.filename}: {error.strerror}.{hint}"
    return str(error)
