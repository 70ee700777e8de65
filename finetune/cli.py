"""From a shell line to a command: paths as they are typed, errors as sentences, exit codes.

Importing this does not import torch.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune import config, faults, usage
from finetune.families import unknown
from finetune.repeating import repeated

COMMANDS = ("check", "train", "evaluate", "predict", "export", "report", "models", "compare", "cache", "demo")
HYDRA_COMMANDS = ("check", "train", "evaluate", "predict", "export")
BUG, USER_ERROR, SOME_FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143


class Exit(BaseException):
    """The command ends here, with a message and an exit code of its own. Not an Exception: it ends a sweep as well."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Around the import of torch and lightning: they make a million objects that stay until the end.

    The garbage collector would look at them again and again, a second while they are made and another one at exit.
    """
    if "torch" in sys.modules:  # in a sweep, after the first run: what would be frozen now is that run's model
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def console() -> None:
    """`finetune <command> ...`: the same commands as `python -m finetune.<command> ...`."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: finetune <command> [key=value ...]\n\ncommands: {', '.join(COMMANDS)}")
        print("`finetune <command> --help` says more of each.")
        sys.exit(0 if len(sys.argv) > 1 else USER_ERROR)
    name = sys.argv[1]
    if name not in COMMANDS:
        _fail(unknown("command", name, COMMANDS))
    importlib.import_module(f"finetune.{name}").main(sys.argv[2:])


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
    failed: list[Exception] = []
    incomplete: list[Exit] = []
    sweeps: set[str] = set()
    _words[:] = given
    try:
        quoted = quote_paths(repeated(given) if name == "train" else given)
    except (OSError, ValueError) as error:
        _fail(str(error))
    _overrides[:] = [word for word in quoted if not word.startswith(("-", "hydra.", "hydra/"))]

    def job(cfg: DictConfig) -> float | None:
        sys.argv = shell  # Lightning starts the other processes of a run with it
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            sweeps.add(HydraConfig.get().sweep.dir)
        try:
            return task(cfg)
        except Exit as error:
            if error.code != SOME_FAILED or HydraConfig.get().mode != RunMode.MULTIRUN:
                raise
            print(error, file=sys.stderr)  # the other points of a sweep go on
            incomplete.append(error)
            return None
        except Exception as error:
            _keep(error)
            failed.append(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _report_job(error, quoted)
                raise  # a sweeper must know; it goes on with the other jobs
            return None  # past Hydra, which would print its own lines
        finally:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                gc.collect()  # the model and the data of this point, before the next has its own

    def terminated(number: int, frame: object) -> None:
        raise Exit("terminated", TERMINATED)

    # names the job and its run folder; Hydra would take both from where `task` is defined
    job.__module__ = f"finetune.{name}"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell everyone that the home cannot be written to
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over instead of printing them and exiting with 1
    _unique_dirs.clear()
    OmegaConf.register_new_resolver("unique_dir", unique_dir, replace=True)
    config.register_models()
    sys.argv = [shell[0], *quoted]
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminated) if main_thread else None
    try:
        if {"--help", "-h"} & set(given):
            usage.print_help(name, quoted)
            return
        if found := faults.find(name, quoted):
            raise ValueError("\n".join(found))
        try:
            hydra.main(version_base="1.3", config_path=str(config.CONF), config_name=name)(job)()
        finally:
            if after_sweep is not None and sweeps:
                logging.getLogger("finetune").setLevel(logging.WARNING)  # its lines would be Hydra's too now
                after_sweep(Path(sweeps.pop()))
                logging.getLogger("finetune").setLevel(logging.NOTSET)
        if failed:
            raise failed[0]
        if incomplete:
            sys.exit(SOME_FAILED)
    except Exit as error:
        if not config.is_first_process():
            sys.exit(0)  # Lightning kills the first process where another one ends otherwise
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(_report(error, name))
    finally:
        sys.argv = shell
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _check_words(name: str, words: Sequence[str]) -> None:
    """Two habits of other tools that Hydra would answer with its own usage, or with silence."""
    keys = [str(key) for key in OmegaConf.load(config.CONF / f"{name}.yaml")]
    for key in keys:
        if any(word.split("=")[0] == f"--{key}" for word in words):
            _fail(f"Arguments have no dashes here: {key}=...")
        if key == "resume" and {"-m", "--multirun"} & set(words) and any(w.startswith("resume=") for w in words):
            _fail("resume= goes on with one run; leave -m out, or give ckpt_path= and the choices to sweep over.")
        if key in ("ckpt", "source", "copy_to") and sum(word.startswith(f"{key}=") for word in words) > 1:
            _fail(
                f"{key} is given more than once. For several pictures give a folder, a list (.txt), or a pattern in quotes."
            )


_words: list[str] = []
_overrides: list[str] = []
"""The words of this command as Hydra records them in a run's folder."""


def typed(name: str) -> list[str]:
    """The command that this is, to be typed again; of a sweep's job, that job alone."""
    hydra_config = HydraConfig.get()
    words = _words if hydra_config.mode != RunMode.MULTIRUN else list(hydra_config.overrides.task)
    return ["python", "-m", f"finetune.{name}", *words]


def begin(cfg: DictConfig, name: str) -> Path:
    """Check a command's configuration and claim its run folder, before torch is imported.

    Raises:
        ValueError: lists all faults.
        FileExistsError: the folder holds another run.
    """
    faults.check(cfg, name)
    if name == "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
        _one_device(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    config.claim_folder(cfg, folder)
    return folder


def _one_device(cfg: DictConfig) -> None:
    """The processes of a run are started with its own words: those of a sweep would start the sweep again."""
    if (devices := cfg.trainer.get("devices")) in (1, "1", None) and cfg.trainer.get("num_nodes", 1) == 1:
        return
    raise ValueError(
        f"A sweep takes one device a run, not trainer.devices={devices}. For runs over several, let the shell sweep: "
        "for seed in 0 1 2; do python -m finetune.train seed=$seed trainer=ddp ...; done"
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
        sys.exit(_report(error, ""))


def _report_job(error: Exception, argv: Sequence[str]) -> None:
    """Name a failed job of a sweep at once; Hydra raises its error again when all jobs are done."""
    cfg = HydraConfig.get()
    given = {word.lower() for word in argv}  # Hydra writes false as False
    own = " ".join(o for o in cfg.overrides.task if o.lower() not in given)
    _print_error(f"job {cfg.job.num} ({own}) failed: {explain(error, cfg.job.name)}")
    error.__dict__["reported"] = True


# --- run folders -------------------------------------------------------------------------------------------------

_unique_dirs: dict[tuple[str, str], str] = {}


def unique_dir(base: str, name: str) -> str:
    """Make and return a folder that nobody else has: `base/name`, or with _1, _2, ... behind it.

    A job of Slurm that was requeued has the folder that it had before.
    """
    key = (base, name)
    if key not in _unique_dirs:
        # the points of a sweep have folders within its own, which is a new one each time
        name = (None if base.endswith("sweeps") else config.slurm_job()) or name
        if not config.is_first_process():
            # torchrun's: each composes for itself, and the first one's folder is the run's
            name = f"{name}_rank{config.rank()}"
        number = 0
        while True:
            path = Path(base) / (f"{name}_{number}" if number else name)
            if config.is_requeued() and _is_this_command(path):
                break
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        _unique_dirs[key] = str(path)
    return _unique_dirs[key]


def _is_this_command(folder: Path) -> bool:
    """Whether a folder is of the same words: a job may train several times."""
    record = folder / ".hydra" / "overrides.yaml"
    return record.is_file() and list(OmegaConf.load(record)) == _overrides


# --- paths -------------------------------------------------------------------------------------------------------


def quote_paths(argv: Sequence[str]) -> list[str]:
    """Quote the values of path keys, so that Hydra's grammar does not trip over `=`, `,`, `(`, `~` or letters.

    In a sweep, commas separate values, unless a file of that very name exists.
    """
    sweep = any(a in ("-m", "--multirun") for a in argv)
    flags, rest = [], []
    items = iter(argv)
    for item in items:
        if item in _FLAGS_WITH_VALUE:
            flags += [item, *([value] if (value := next(items, None)) is not None else [])]
        elif item.startswith("-"):
            flags.append(item)
        else:
            rest.append(_quote_path(item, sweep))
    return [*flags, *rest]  # flags in front: Hydra's parser wants all overrides in one piece


_FLAGS_WITH_VALUE = (
    "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p",
)  # fmt: skip


def _quote_path(argument: str, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or not config.PATH_KEY.fullmatch(key) or value in ("", "null", "???"):
        return argument
    if value[0] in "'\"" or "${" in value:
        return argument
    path = os.path.expanduser(value)
    if sweep and "," in value and not os.path.exists(path):
        return argument
    escaped = path.replace("\\", "\\\\") if path.endswith("\\") else path
    return f'{key}="{escaped.replace(chr(34), chr(92) + chr(34))}"'


# --- errors ------------------------------------------------------------------------------------------------------


def _report(error: Exception, name: str) -> int:
    if os.environ.get("FINETUNE_DEBUG") == "1" or not (is_user_error(error) or _lost_another(error)):
        traceback.print_exception(error)
    if not error.__dict__.get("reported"):
        _print_error(explain(error, name))
    return USER_ERROR if is_user_error(error) else BUG


def _keep(error: Exception) -> None:
    """An error with its traceback in the log of its run; the terminal gets less."""
    record = logging.LogRecord(
        "finetune", logging.ERROR, __file__, 0, "stopped", None, (type(error), error, error.__traceback__)
    )
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def _fail(message: str) -> NoReturn:
    _print_error(message)
    sys.exit(USER_ERROR)


def _print_error(message: str) -> None:
    text = f"error: {message}"
    if sys.stderr.isatty():
        text = "\n".join(fill(line, 80, break_long_words=False, break_on_hyphens=False) for line in text.splitlines())
    print(text, file=sys.stderr, flush=True)


def is_user_error(error: BaseException) -> bool:
    """Whether the user can mend it: a configuration error, or a ValueError or OSError that our own code raised."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    # Lightning's, whose module would import torch; and ours, raised again by a worker process in torch's code
    if type(error).__name__ in ("MisconfigurationException", "BadImageError"):
        return True
    if isinstance(error, PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return True
    if isinstance(error, OSError) and error.errno in config.NO_PLACE:
        return True
    if _lost_worker(error):
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    ours = bool(innermost) and Path(innermost[0].filename).resolve().is_relative_to(Path(__file__).resolve().parent)
    making_a_folder = bool(innermost) and innermost[0].name == "mkdir"
    return isinstance(error, ValueError | FileNotFoundError) and (ours or making_a_folder)


def _lost_worker(error: BaseException) -> bool:
    """Whether a process that decodes images has died, or has found no shared memory."""
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
        return (
            f"a process that decodes images has died ({str(error).strip().splitlines()[-1]}). It had too little memory, or too "
            "little shared memory (docker run --shm-size=1g); data.num_workers=0 needs none. resume=RUN goes on."
        )
    if not is_user_error(error):
        return f"{type(error).__name__}: {error}\nThis looks like a bug in finetune; please report it with the lines above."
    if isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, OSError):
        error = error.__cause__  # the run's folder could not be made
    if isinstance(error, HydraException | OmegaConfBaseException):
        return faults.explain(error, name)
    if isinstance(error, OSError) and error.strerror:
        hint = " hydra.run.dir=FOLDER chooses another place for the run." if name in HYDRA_COMMANDS else ""
        return f"{error.filename}: {error.strerror}.{hint}"
    return str(error)
