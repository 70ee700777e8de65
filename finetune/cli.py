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

from finetune import composing, config, errors, faults, usage
from finetune.errors import INTERRUPTED, SOME_FAILED, TERMINATED, USER_ERROR, Exit
from finetune.families import unknown
from finetune.repeating import repeated

COMMANDS = ("check", "train", "evaluate", "predict", "export", "report", "models", "compare", "cache", "demo")


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
        errors.fail(unknown("command", name, COMMANDS))
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
    _words[:] = given
    try:
        quoted = quote_paths(repeated(given) if name == "train" else given)
    except (OSError, ValueError) as error:
        errors.fail(str(error))
    _overrides[:] = [word for word in quoted if not word.startswith(("-", "hydra.", "hydra/"))]
    _unique_dirs.clear()
    OmegaConf.register_new_resolver("unique_dir", unique_dir, replace=True)
    config.register_models()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell everyone that the home cannot be written to
    jobs = _Jobs(name, task, shell, quoted)
    sys.argv = [shell[0], *quoted]
    try:
        with _terminable():
            if {"--help", "-h"} & set(given):
                usage.print_help(name, quoted)
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
        if not config.is_first_process():
            sys.exit(0)  # Lightning kills the first process where another one ends otherwise
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(errors.report(error, name))
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
                faults.check(cfg, self.name)
            return self.task(cfg)
        except Exit as error:
            if error.code != SOME_FAILED or not sweeps:
                raise
            print(error, file=sys.stderr)  # the other points of a sweep go on
            self.incomplete.append(error)
        except Exception as error:
            errors.keep(error)
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
        cfg = composing.compose(name, words)
        return cfg if cfg.hydra.mode != RunMode.MULTIRUN else None
    point = composing.first_point([word for word in words if word not in flags])
    if point is not None and flags <= {"-m", "--multirun"}:
        composing.compose(name, point)
    return None


def _run(jobs: _Jobs, cfg: DictConfig) -> None:
    """The one run of what has been composed and checked; `hydra.main` would compose it twice more."""
    with hydra.initialize_config_dir(str(config.CONF), version_base="1.3", job_name=jobs.name):
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
        hydra.main(version_base="1.3", config_path=str(config.CONF), config_name=jobs.name)(job)()
    finally:
        if after_sweep is not None and jobs.sweep is not None:
            logging.getLogger("finetune").setLevel(logging.WARNING)  # its lines would be Hydra's too now
            after_sweep(Path(jobs.sweep))
            logging.getLogger("finetune").setLevel(logging.NOTSET)


def _check_words(name: str, words: Sequence[str]) -> None:
    """Words that Hydra would answer with its own usage, or with silence."""
    for key in faults.shipped_keys(f"{name}.yaml"):
        if any(word.split("=")[0] == f"--{key}" for word in words):
            errors.fail(f"Arguments have no dashes here: {key}=...")
        if key == "resume" and {"-m", "--multirun"} & set(words) and any(w.startswith("resume=") for w in words):
            errors.fail("resume= goes on with one run; leave -m out, or give ckpt_path= and the choices to sweep over.")
        if key in ("ckpt", "source", "copy_to") and sum(word.startswith(f"{key}=") for word in words) > 1:
            errors.fail(
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
    """Claim the run folder of a command, before torch is imported.

    Raises:
        FileExistsError: the folder holds another run.
        ValueError: a sweep over several devices.
    """
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
        sys.exit(errors.report(error, ""))


def _report_job(error: Exception, argv: Sequence[str]) -> None:
    """Name a failed job of a sweep at once; Hydra raises its error again when all jobs are done."""
    cfg = HydraConfig.get()
    given = {word.lower() for word in argv}  # Hydra writes false as False
    own = " ".join(o for o in cfg.overrides.task if o.lower() not in given)
    errors.print_error(f"job {cfg.job.num} ({own}) failed: {errors.explain(error, cfg.job.name)}")
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
