"""Errors as sentences, and the exit codes: what is the user's to mend, what is a bug, what is neither.

Importing this does not import torch.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from pathlib import Path
from textwrap import fill
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from finetune.cli import compose
from finetune.io import paths

HYDRA_COMMANDS = ("check", "train", "evaluate", "predict", "export")

BUG, USER_ERROR, SOME_FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143


class Exit(BaseException):
    """The command ends here, with a message and an exit code of its own. Not an Exception: it ends a sweep as well."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def report_error(error: Exception, name: str) -> int:
    """Print an error of a command, with its traceback if it is a bug, and give the exit code."""
    if os.environ.get("FINETUNE_DEBUG") == "1" or not (is_user_error(error) or _lost_another(error)):
        traceback.print_exception(error)
    if not error.__dict__.get("reported"):
        print_error(explain(error, name))
    return USER_ERROR if is_user_error(error) else BUG


def log_error(error: Exception) -> None:
    """An error with its traceback in the log of its run; the terminal gets less."""
    record = logging.LogRecord(
        "finetune", logging.ERROR, __file__, 0, "stopped", None, (type(error), error, error.__traceback__)
    )
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def fail(message: str) -> NoReturn:
    """End the command with a mistake of the user's."""
    print_error(message)
    sys.exit(USER_ERROR)


def print_error(message: str) -> None:
    """On standard error; wrapped where it is a terminal."""
    text = f"error: {message}"
    if sys.stderr.isatty():
        text = "\n".join(map(_wrapped, text.splitlines()))
    print(text, file=sys.stderr, flush=True)


def _wrapped(line: str) -> str:
    hanging = "  " if line.startswith("- ") else ""
    return fill(line, 80, break_long_words=False, break_on_hyphens=False, subsequent_indent=hanging)


def is_user_error(error: BaseException) -> bool:
    """Whether the user can mend it: a configuration error, or a ValueError or OSError that our own code raised."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    # Lightning's, whose module would import torch; and ours, raised again by a worker process in torch's code
    if type(error).__name__ in ("MisconfigurationException", "BadImageError"):
        return True
    if isinstance(error, PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return True
    if isinstance(error, OSError) and error.errno in paths.UNWRITABLE_ERRNOS:
        return True
    if _lost_worker(error):
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    ours = bool(innermost) and Path(innermost[0].filename).resolve().is_relative_to(Path(__file__).resolve().parents[1])
    making_a_folder = bool(innermost) and innermost[0].name == "mkdir"
    return isinstance(error, ValueError | FileNotFoundError) and (ours or making_a_folder)


def _lost_worker(error: BaseException) -> bool:
    """Whether a process that decodes images has died, or has found no shared memory."""
    if isinstance(error, EOFError | ConnectionError | FileNotFoundError):  # it died while it handed over a batch
        return any(frame.name == "_try_get_data" for frame in traceback.extract_tb(error.__traceback__))
    words = r"DataLoader worker \(pid|DataLoader timed out|shared memory|unable to (?:mmap|open shared)"
    return isinstance(error, RuntimeError) and re.search(words, str(error)) is not None


def _lost_another(error: BaseException) -> bool:
    """Whether a process failed because it could not reach the others any more: gloo and NCCL in their own words."""
    return isinstance(error, RuntimeError) and re.search(r"\b(gloo|NCCL|ProcessGroup\w*)\b", str(error)) is not None


def explain(error: BaseException, name: str) -> str:
    """An error as a paragraph that says what was given, what is known and what to do."""
    if _lost_another(error):
        return (
            "another process of this run has ended or does not answer; what it said stands above, or in its log in the "
            f"run's folder, with all of this: {str(error).strip().splitlines()[0][:200]}"
        )
    if _lost_worker(error):
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return (
            f"a process that decodes images has died ({said}). Most often it has too little memory, or too "
            "little shared memory (docker run --shm-size=1g); data.num_workers=0 needs none. resume=RUN goes on."
        )
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
