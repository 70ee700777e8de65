"""Write the configuration of a run as a recipe, a file that `experiment=` takes, and read such files.

Importing this does not import torch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.cli import compose
from finetune.cli.arguments import config_folders, format_value, override_key, plain_key, quote_paths, strip_dashes
from finetune.cli.contradictions import only_solves_head
from finetune.io.files import write_atomically
from finetune.io.paths import CONF, PATH_KEY, absolute_paths
from finetune.runtime.console import echo, field_line
from finetune.runtime.mappings import select
from finetune.runtime.process import heavy_imports
from finetune.runtime.suggestions import unknown_name

_NOT_OF_A_RECIPE = ("hydra", "experiment", "preset", "paths", "logger", "sweep", "resume", "ckpt_path", "report")
"""Groups and keys that say where a run writes, or what has become other keys, and not what it trains."""

DEFAULT_PRESET = "good"

_SAYS_HOW_TO_TRAIN = (
    "strategy", "optimizer", "scheduler", "loss", "callbacks", "trainer.max_epochs", "trainer.max_steps", "data.augment",
    "experiment", "resume", "ckpt_path", "sweep", "eval",
)  # fmt: skip
"""Keys, and all below them, beside which no preset is taken by default."""

_OF_A_TRAINING = ("optimizer", "scheduler", "trainer.max_epochs", "trainer.max_steps", "loss.mixup", "loss.cutmix")
"""Keys that change nothing where the head is solved and nothing is trained."""

_DEBUG = "trainer=debug"


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
    if values.get("ckpt_path") is not None:
        raise ValueError(f"the run went on from {values['ckpt_path']}")
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
    defaults = [{f"{'override ' if group in standard else ''}/{group}": option} for group, option in groups.items()]
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    recipe: dict[str, Any] = {**({"defaults": defaults} if defaults else {}), **absolute_paths(changed)}
    again = compose.compose_without_validation("train", quote_paths(_words(recipe, path)))
    if _trained(OmegaConf.to_container(compose.without_hydra(again), resolve=True)) != _trained(values):
        raise ValueError("the run leaves a key of its options out, which a recipe cannot say")
    write_atomically(path, f"# @package _global_\n{head}{OmegaConf.to_yaml(OmegaConf.create(recipe))}".encode())


def _trained(values: Any) -> dict[str, Any]:
    """Return what a configuration trains, with paths as a recipe has them."""
    return absolute_paths({key: value for key, value in values.items() if key not in _NOT_OF_A_RECIPE})


BEST_CONFIG = "best_config.yaml"


def finish_sweep(folder: Path) -> None:
    """Compare the runs of a sweep that has ended, and keep the recipe of the best."""
    with heavy_imports():  # a launcher's other processes have run the points
        from finetune.reporting.leaderboard import compare_sweep

    best = compare_sweep(folder)
    if best is not None:
        name = best.metrics["monitor"]
        write_best(best.folder, folder, f"{name} {best.metrics['best'][name]:.4f}", best.metrics["best"]["epoch"])


def write_best(run: Path, sweep: Path, result: str, epoch: int) -> None:
    """Write the recipe of the best run of a sweep into its folder, and print how it is trained again.

    Args:
        run: its folder.
        sweep: the folder for the file.
        result: what makes it the best, as text.
        epoch: its best one.
    """
    path = sweep / BEST_CONFIG
    again = f"python -m finetune.train {shlex.quote(f'experiment={path}')}"
    everything = f"data.val=none monitor=train/loss trainer.max_epochs={epoch}"
    comment = (
        f"The best run of a sweep, {run.name}: {result} in epoch {epoch}. Train it again with\n"
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


# --- preset=NAME ---------------------------------------------------------------------------------------------------


def expand_preset(argv: Sequence[str]) -> list[str]:
    """Put the choices that a preset stands for before the other arguments, which override them.

    Where no key says how to train (a strategy, an optimizer, a number of epochs), it is `DEFAULT_PRESET`.

    Raises:
        ValueError: there is no such preset, it is swept over, or there is an experiment beside it.
    """
    words = [word for word in argv if override_key(word) == "preset"]
    rest = [word for word in argv if word not in words]
    if not words and _says_how_to_train(rest):
        return list(argv)
    name = words[-1].partition("=")[2].strip("'\"") if words else DEFAULT_PRESET
    if name in ("", "null"):
        return list(argv)
    if "," in name:
        raise ValueError(f"preset={name}: a preset is no point of a sweep; sweep over strategy=linear_probe,lp_ft.")
    known = [path.stem for path in (CONF / "presets").glob("*.yaml")]
    if name not in known:
        raise ValueError(unknown_name("preset", name, sorted(known), f"It is one of {', '.join(sorted(known))}."))
    if "experiment" in {plain_key(word) for word in rest}:
        raise ValueError(f"preset={name} and experiment= both say how to train: give one of them.")
    # what a preset says of the data is not about which they are
    kept, _ = _without_given(read_recipe(_preset_file(name)), [word for word in rest if plain_key(word) != "data"])
    left = {"trainer.max_epochs"} if _DEBUG in rest else set()  # its one epoch is what it is for
    left |= {"data.augment"} if _data_file_augments(rest) else set()
    return [f"preset={name}", *(word for word in kept if plain_key(word) not in left), *rest]


def _says_how_to_train(words: Sequence[str]) -> list[str]:
    """Return what says how to train, beside which no preset is taken by default; sorted, without values."""
    keys = {plain_key(word) for word in words}
    said = [key for key in keys if any(f"{key}.".startswith(f"{name}.") for name in _SAYS_HOW_TO_TRAIN)]
    return sorted([*said, *({_DEBUG} & {*words})])


def _data_file_augments(words: Sequence[str]) -> bool:
    """Return whether a data file of the user's own says how to augment, which a preset leaves as it is."""
    named = [word.partition("=")[2] for word in words if override_key(word) == "data"]
    files = [folder / "data" / f"{name}.yaml" for folder in config_folders(words) for name in named[-1:]]
    # no file of ours does
    return any(select(OmegaConf.load(path), "augment") not in (None, "auto") for path in files if path.is_file())


def _preset_file(name: str) -> Path:
    return CONF / "presets" / f"{name}.yaml"


def announce_preset(cfg: DictConfig) -> None:
    """Print which preset a run takes, what it does, and which of its choices are others here, or change nothing."""
    if only_solves_head(cfg):
        _announce_unused()
    if cfg.preset is None:
        _announce_none()
        return
    path = _preset_file(cfg.preset)
    comment = path.read_text(encoding="utf-8").partition("defaults:")[0].splitlines()
    meaning = " ".join(line.removeprefix("# ") for line in comment if not line.startswith("# @"))
    echo(field_line("Preset", f"{cfg.preset}: {meaning} Another preset=, or a strategy=, is taken instead."))
    wanted, choices, own = OmegaConf.load(path), HydraConfig.get().runtime.choices, []
    for word in read_recipe(path):
        key, _, option = word.lstrip("+").partition("=")
        here, there = (select(cfg, key), select(wanted, key)) if "." in key else (choices.get(key), option)
        if here is None and "/" in key:  # the value was given in place of an option
            key = key.replace("/", ".")
            here = select(cfg, key)
        if here != there and here is not None:  # what is None came with an option that another has replaced
            own.append(f"{key}={here}")
    if own:
        echo(field_line("", f"other than in the preset: {' '.join(own)}"))


def _announce_unused() -> None:
    """Print which words are about a training, where there is none."""
    words = [plain_key(word) for word in HydraConfig.get().overrides.task]
    given = [key for key in words if key.split(".")[0] in _OF_A_TRAINING or key in _OF_A_TRAINING]
    # those of a preset stand for it, and a recipe may be of another strategy
    if given and "experiment" not in words:
        verb = "changes" if len(given) == 1 else "change"
        echo(
            field_line(
                "Note", f"{', '.join(dict.fromkeys(given))} {verb} nothing: the head is solved, and nothing is trained."
            )
        )


def _announce_none() -> None:
    """Print why a single run takes no preset, where a smaller word than a strategy has decided it."""
    hydra = HydraConfig.get()
    said = _says_how_to_train(hydra.overrides.task)
    groups = {plain_key(word).split(".")[0] for word in hydra.overrides.task}
    decided = {"preset", "strategy", "experiment", "resume", "ckpt_path", "sweep"} & groups
    if said and not decided and hydra.mode == RunMode.RUN:
        echo(
            field_line(
                "Preset",
                f"none, because {', '.join(said)} {'says' if len(said) == 1 else 'say'} how to train: "
                f"strategy={hydra.runtime.choices['strategy']} is taken. preset={DEFAULT_PRESET} goes beside that.",
            )
        )


# --- experiment=FILE -----------------------------------------------------------------------------------------------


def expand_recipes(argv: Sequence[str]) -> list[str]:
    """Replace `preset=NAME` and `experiment=FILE` by the choices that they stand for; other arguments override them.

    So the record of the run says all, and the file may go. Where another option of a group is given, what the file says of
    the group's keys is left out as well, with a line: it was meant for the file's option.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no recipe.
    """
    argv = expand_preset(strip_dashes(argv))
    files = [word for word in argv if override_key(word) == "experiment" and _is_file(word)]
    rest = [word for word in argv if word not in files]
    words: list[str] = []
    for file in files:
        found = read_recipe(_path(file))
        kept, left = _without_given(found, rest)
        words += kept
        if left:
            echo(field_line("Note", f"left out of {_path(file)}, because another option is given: {' '.join(left)}"))
    return [*words, *rest]


def _without_given(recipe: Sequence[str], rest: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a recipe that hold beside other arguments, and those that were about a replaced option."""
    given = {plain_key(word) for word in rest}
    chosen = {plain_key(word) for word in recipe}
    groups = {key for key in given if key != "trainer" or key in chosen}
    others = [word for word in recipe if plain_key(word) not in given]
    left = [word for word in others if any(plain_key(word).startswith(f"{group}.") for group in groups)]
    return [word for word in others if word not in left], left


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
        return _words(values, path)
    # a damaged file can be anything
    except Exception as error:
        raise ValueError(f"experiment={path} cannot be read as a recipe ({str(error).splitlines()[0]}).") from error


def _words(recipe: Mapping[str, Any], path: Path) -> list[str]:
    """Return the overrides that the contents of a recipe stand for."""
    values = dict(recipe)
    defaults = [_default_word(entry) for entry in values.pop("defaults", []) if entry != "_self_"]
    return [*defaults, *_value_words(values, "", path)]


def _default_word(entry: Any) -> str:
    """Return an entry of a defaults list as an override: `override /model: resnet18` is `model=resnet18`."""
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"{entry!r} in its defaults is no group and option")
    ((group, option),) = entry.items()
    match = _GROUP.fullmatch(str(group))
    if match is None or match["name"].split("/")[0] in _REFUSED:
        raise ValueError(f"{group!r} in its defaults is no group of a run")
    return f"{'' if match['override'] else '+'}{match['name']}={_option('null' if option is None else option)}"


def _value_words(values: Mapping[str, Any], prefix: str, path: Path) -> Iterator[str]:
    """Yield an override for each value, `optimizer.lr=0.1`."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        # Hydra's own node says what this machine runs, and marks before a key would reach it by another name
        if not _KEY.fullmatch(str(name)) or key.split(".")[0] in _REFUSED:
            raise ValueError(f"experiment={path} sets {key}; a recipe says what a run trains.")
        if isinstance(value, Mapping) and value:
            yield from _value_words(value, f"{key}.", path)
        elif PATH_KEY.fullmatch(key) and isinstance(value, str):
            yield f"{key}={value}"  # quoted with those of the command line
        else:
            yield f"{'++' if '.' in key else ''}{key}={format_value(value)}"


_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")
_GROUP = re.compile(r"(?P<override>override +)?/?(?P<name>[A-Za-z_]\w*(/[A-Za-z_]\w*)*)")
_REFUSED = ("hydra", "experiment", "resume")
