"""Run the function of a command from Python, outside of a Hydra application, as its command runs it.

Importing this does not import torch.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from finetune.cli import compose, errors, groups, jobs, validation
from finetune.cli.arguments import SWEEP_FLAGS, SWEEP_GROUPS, is_hydra_flag, override_key, prepare_arguments
from finetune.cli.errors import HYDRA_COMMANDS, SOME_FAILED, TERMINATED, Exit
from finetune.cli.recipes import expand_recipes
from finetune.cli.run_folder import STATE
from finetune.runtime.console import echo, field_line
from finetune.runtime.suggestions import unknown_name

T = TypeVar("T")

Task = Callable[[DictConfig], T]

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""As in `conf/hydra/job_logging/plain.yaml`."""


def hydra_task(command: str) -> Callable[[Task[T]], Task[T]]:
    """Let the function of a command take its configuration anywhere.

    Within a Hydra application it is called as it is. Elsewhere, and with the configuration that `finetune.compose`
    returns, it runs as its command does: with the same validation, run folder and log.
    """

    def decorate(task: Task[T]) -> Task[T]:
        @functools.wraps(task)
        def call(cfg: DictConfig) -> T:
            if HydraConfig.initialized() and isinstance(cfg, DictConfig) and "hydra" not in cfg:
                return task(cfg)
            return run_task(command, task, cfg)

        return call

    return decorate


def compose_from_python(
    overrides: Sequence[str], command: str, config_dir: str | Path | None, validate: bool
) -> DictConfig:
    """Compose the configuration of a command from its arguments, as the shell would give them.

    Of Hydra's own node it has what a run needs: the folder that was chosen, the arguments, the options of each group.

    Raises:
        FileNotFoundError: there is no such folder or run.
        ValueError: lists what is wrong with the arguments, a line each; or they name several runs.
    """
    words = _check_arguments(overrides, command)
    search: list[str] = []
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"config_dir={config_dir}: there is no such folder (looked from {Path.cwd()}).")
        escaped = str(folder).replace("'", "\\'")
        search = [f"hydra.searchpath=['file://{escaped}']"]
    with kept_process():
        words = expand_recipes(words) if command == "train" else words
        prepared = prepare_arguments(command, words)
        if SWEEP_FLAGS & set(prepared):  # the name of a sweep asks for it, or its folder
            named = [word for word in words if override_key(word) in (*SWEEP_GROUPS, "resume")]
            raise ValueError(_describe_sweep(named))
        words = [*search, *prepared]
        several = [word for word in words if compose.first_point([word]) != [word]]
        composer = compose.compose if validate else compose.compose_without_validation
        cfg = None if several else composer(command, words)
    if cfg is None or cfg.hydra.mode == RunMode.MULTIRUN:
        raise ValueError(_describe_sweep(several or ["hydra.mode=MULTIRUN"]))
    node: Any = OmegaConf.to_container(cfg.hydra, resolve=False)
    chosen = [word for word in words if word.lstrip("+").startswith("hydra.run.dir=")]
    choices = {
        group: name for group, name in node["runtime"]["choices"].items() if not f"{group}/".startswith("hydra/")
    }
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.hydra = {
            "run": {"dir": node["run"]["dir"] if chosen else None},  # null = as the command chooses it
            "overrides": {key: list(node["overrides"][key]) for key in ("hydra", "task")},
            "runtime": {"choices": choices},
        }
    return cfg


def _check_arguments(overrides: Sequence[str], command: str) -> list[str]:
    """Return arguments that are a list of words, and no flags.

    Raises:
        ValueError: they are something else.
    """
    if command not in HYDRA_COMMANDS:
        raise ValueError(unknown_name("command", str(command), HYDRA_COMMANDS))
    form = 'a list of arguments: ["model=resnet18", "data.root=photos"]'
    if isinstance(overrides, str | bytes) or not isinstance(overrides, Sequence):
        raise ValueError(f"Give {form}; got {overrides!r}.")
    for word in overrides:
        if not isinstance(word, str):
            raise ValueError(f"Give {form}; {word!r} in it is no string.")
        if word in SWEEP_FLAGS:
            raise ValueError(_describe_sweep([word]))
        if is_hydra_flag(word):
            raise ValueError(
                f"{word!r} is a flag of the command line; config_dir= takes a folder of your own YAML files."
            )
    return list(overrides)


def _describe_sweep(words: Sequence[str]) -> str:
    return (
        f"{' '.join(words)} asks for several runs, and this is for one; give one value each in a loop: "
        'for value in (...): finetune.run([..., f"KEY={value}"]).'
    )


def run_task(command: str, task: Task[T], cfg: DictConfig) -> T:
    """Validate a configuration and run the function of a command on it, as the command does.

    Args:
        command: its name.
        task: the function of the command.
        cfg: as `finetune.compose` or `hydra.compose` return it, changed or not.

    Raises:
        ValueError: lists what is wrong with the configuration, a line each.
        KeyboardInterrupt: the run was interrupted; the text says how to go on with it.
        SystemExit: the process was told to end, by SIGTERM.
    """
    if not isinstance(cfg, DictConfig):
        raise ValueError(
            f"{command}.{command} takes the configuration that finetune.compose([...], {command!r}) returns, "
            f"got {type(cfg).__name__}."
        )
    with kept_process():
        job, overrides, unchanged = _job_config(command, cfg)
        faults = compose.find_faults(job, command, overrides)
        if faults:
            raise ValueError(validation.format_faults(faults))
        STATE.start(overrides, overrides, from_arguments=unchanged)
        return _run_job(_Runner(command, task, list(sys.argv), overrides), job)


def _run_job(runner: jobs.JobRunner, job: DictConfig) -> Any:
    """Run a job and raise what went wrong in it as an error that a notebook or a script expects."""
    try:
        value = jobs.run_single(runner, job, configure_logging=False)
    except Exit as error:
        if error.code == SOME_FAILED:
            echo(field_line("Note", str(error)))
            return error.value
        if error.code == TERMINATED:
            raise SystemExit(TERMINATED) from error
        raise KeyboardInterrupt(str(error)) from error
    for failure in runner.errors:
        if isinstance(failure, HydraException | OmegaConfBaseException):
            raise ValueError(errors.explain(failure, runner.command)) from failure
        raise failure
    return value


def _job_config(command: str, cfg: DictConfig) -> tuple[DictConfig, list[str], bool]:
    """Return a configuration with Hydra's own node, its overrides, and whether it is what they compose."""
    values: Any = _plain_paths(OmegaConf.to_container(cfg, resolve=False))
    node: dict[str, Any] = values.pop("hydra", {})
    record = node.get("overrides", {})
    overrides: list[str] = record.get("task", [])
    job = compose.compose_without_validation(command, [*record.get("hydra", []), *overrides])
    unchanged = bool(node) and values == OmegaConf.to_container(compose.without_hydra(job), resolve=False)
    with open_dict(job):
        for key in [key for key in job if key != "hydra"]:
            del job[key]
        for key, value in values.items():
            job[key] = value
        if folder := node.get("run", {}).get("dir"):
            job.hydra.run.dir = folder
        if not node:  # which options were chosen is not known
            job.hydra.runtime.choices = {}
        if not unchanged:  # `resume=` would repeat the overrides, and train something else
            job.hydra.output_subdir = None
    return job, overrides, unchanged


def _plain_paths(value: Any) -> Any:
    """Replace paths by text: a checkpoint holds no other objects."""
    if isinstance(value, dict):
        return {key: _plain_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain_paths(inner) for inner in value]
    return str(value) if isinstance(value, PurePath) else value


class _Runner(jobs.JobRunner):
    """Write what a run says to its log too, beside the loggers that the caller has set up."""

    def run(self, cfg: DictConfig, validate: bool = False) -> Any:
        with _log_file(Path(HydraConfig.get().runtime.output_dir) / f"{self.command}.log"):
            if self.command == "train" and not STATE.from_arguments:
                text = "this configuration is not that of its arguments: config.yaml has it, and resume= cannot"
                echo(field_line("Note", f"{text} repeat it; ckpt_path=RUN goes on with it."))
            return super().run(cfg, validate)


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root, own = logging.getLogger(), logging.getLogger("finetune")
    level, propagate = own.level, own.propagate
    root.addHandler(handler)
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False  # the lines are printed; the caller's handlers would print them once more
    try:
        yield
    finally:
        own.setLevel(level)
        own.propagate = propagate
        root.removeHandler(handler)
        own.removeHandler(handler)
        handler.close()


@contextmanager
def kept_process() -> Iterator[None]:
    """Keep the state of Hydra, of warnings and of torch as the caller has it; register what the YAML files use."""
    state, base = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
    groups.register_models()
    torch = sys.modules.get("torch")
    precision = torch.get_float32_matmul_precision() if torch is not None else "highest"
    try:
        with warnings.catch_warnings():
            yield
    finally:
        GlobalHydra.instance().hydra = state
        VersionBase.instance().version_base = base
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_float32_matmul_precision(precision)
