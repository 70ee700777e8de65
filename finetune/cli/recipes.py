"""Write the configuration of a run as a recipe, a file that `experiment=` takes, and read such files.

Importing this does not import torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.cli import compose
from finetune.cli.arguments import format_value, override_key
from finetune.io.files import write_atomically
from finetune.io.paths import PATH_KEY
from finetune.runtime.console import echo, field_line

_NOT_OF_A_RECIPE = ("hydra", "experiment", "paths", "logger", "sweep", "resume", "ckpt_path", "report")
"""Groups and keys that say where a run writes, and not what it trains."""

_OPEN = ("optimizer", "scheduler", "trainer", "loss", "strategy", "callbacks", "metrics", "data", "model")
"""Sections to which a recipe may add keys of its own."""


def write_recipe(run: Path, path: Path, comment: str) -> None:
    """Write the choices of a run, as far as they are no defaults, as a YAML file.

    Args:
        run: its folder, with `config.yaml` and `.hydra`.
        path: of the file.
        comment: stands at its head, lines of text.

    Raises:
        OSError: the run has no record of its configuration.
        ValueError: what it chose cannot be composed any more.
    """
    chosen = OmegaConf.load(run / ".hydra" / "hydra.yaml").hydra.runtime.choices
    values: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    standard = compose.compose_without_validation("train", []).hydra.runtime.choices
    groups = {
        str(group): option
        for group, option in chosen.items()
        if str(group).split("/")[0] not in _NOT_OF_A_RECIPE and option != standard.get(group)
    }
    words = [f"{'' if group in standard else '+'}{group}={_option(option)}" for group, option in groups.items()]
    composed = compose.without_hydra(compose.compose_without_validation("train", words))
    before: Any = OmegaConf.to_container(composed, resolve=True)
    changed = _changes(values, before)
    for key in _NOT_OF_A_RECIPE:
        changed.pop(key, None)
    if root := changed.get("data", {}).get("root"):
        changed["data"]["root"] = str(Path(root).expanduser().absolute())
    defaults = [{f"{'override ' if group in standard else ''}/{group}": option} for group, option in groups.items()]
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    body = OmegaConf.to_yaml(OmegaConf.create({"defaults": defaults, **changed} if defaults else changed))
    write_atomically(path, f"# @package _global_\n{head}{body}".encode())


BEST_CONFIG = "best_config.yaml"


def finish_sweep(folder: Path) -> None:
    """Compare the runs of a sweep that has ended, and keep the recipe of the best."""
    from finetune.reporting.leaderboard import compare_sweep

    best = compare_sweep(folder)
    if best is not None:
        write_best(best.folder, folder, f"{best.acc:.4f}", best.metrics["best"]["epoch"])


def write_best(run: Path, sweep: Path, accuracy: str, epoch: int) -> None:
    """Write the recipe of the best run of a sweep into its folder, and print how it is trained again.

    Args:
        run: its folder.
        sweep: the folder for the file.
        accuracy: of its validation, as text.
        epoch: its best one.
    """
    path = sweep / BEST_CONFIG
    again = f"python -m finetune.train {shlex.quote(f'experiment={path}')}"
    everything = f"data.val=none monitor=train/loss trainer.max_epochs={epoch}"
    comment = (
        f"The best run of a sweep, {run.name}: {accuracy} of its validation images, in epoch {epoch}. Train it again with\n"
        f"  python -m finetune.train experiment={path.name}\n"
        f"and on all images, without a validation, with {everything}"
    )
    try:
        write_recipe(run, path, comment)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        echo(field_line("Note", f"{path.name} could not be written: {error}"))
        return
    echo(f"{'Again':<10}{again}\n{'':<10}on all images, without a validation: {everything}")


def _option(option: Any) -> str:
    return f"[{','.join(option)}]" if isinstance(option, Sequence) and not isinstance(option, str) else str(option)


def _changes(values: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from those of before, in the same nested form."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and value:
            if inner := _changes(value, old):
                changed[key] = inner
        elif value != old:
            changed[key] = value
    return changed


# --- experiment=FILE -----------------------------------------------------------------------------------------------


def expand_recipes(argv: Sequence[str]) -> list[str]:
    """Replace `experiment=FILE` by the choices in that file; other arguments override them.

    So the record of the run says all, and the file may go.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no recipe.
    """
    files = [word for word in argv if override_key(word) == "experiment" and _is_file(word)]
    if not files:
        return list(argv)
    rest = [word for word in argv if word not in files]
    given = {override_key(word) for word in rest}
    words = [word for file in files for word in read_recipe(_path(file)) if override_key(word) not in given]
    flags = [word for word in rest if word.startswith("-")]
    return [*flags, *words, *(word for word in rest if not word.startswith("-"))]


def _path(word: str) -> Path:
    return Path(word.partition("=")[2].strip("'\"")).expanduser()


def _is_file(word: str) -> bool:
    return _path(word).suffix in (".yaml", ".yml")


def read_recipe(path: Path) -> list[str]:
    """Return the overrides that a recipe stands for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no recipe.
    """
    if not path.is_file():
        raise FileNotFoundError(f"experiment={path}: there is no such file (looked from {Path.cwd()}).")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(values, dict):
            raise ValueError("it is no mapping")
        defaults = [_default_word(entry) for entry in values.pop("defaults", []) if entry != "_self_"]
    # a damaged file can be anything
    except Exception as error:
        raise ValueError(f"experiment={path} cannot be read as a recipe ({str(error).splitlines()[0]}).") from error
    return [*defaults, *_value_words(values, "", path)]


def _default_word(entry: Any) -> str:
    """Return an entry of a defaults list as an override: `override /model: resnet18` is `model=resnet18`."""
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"{entry!r} in its defaults is no group and option")
    ((group, option),) = entry.items()
    words = str(group).split()
    is_override = words[0] == "override"
    name = words[-1].lstrip("/")
    if name.startswith("hydra") or len(words) != 1 + is_override:
        raise ValueError(f"{group!r} in its defaults is no group of a run")
    return f"{'' if is_override else '+'}{name}={_option('null' if option is None else option)}"


def _value_words(values: Mapping[str, Any], prefix: str, path: Path) -> Iterator[str]:
    """Yield an override for each value, `optimizer.lr=0.1`."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key.startswith("hydra"):
            raise ValueError(f"experiment={path} sets {key}; a recipe says what a run trains.")
        if isinstance(value, Mapping) and value:
            yield from _value_words(value, f"{key}.", path)
        elif PATH_KEY.fullmatch(key) and isinstance(value, str):
            yield f"{key}={value}"  # quoted with those of the command line
        else:
            yield f"{'++' if key.split('.')[0] in _OPEN and '.' in key else ''}{key}={format_value(value)}"
