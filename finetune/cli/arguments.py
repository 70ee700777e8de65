"""Check the arguments of a command line and rewrite them for Hydra: quoted paths, and the overrides of a resumed run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import ListConfig, OmegaConf

from finetune.cli import schema
from finetune.cli.groups import register_prefixed_models
from finetune.cli.logger_keys import expand_logger_keys
from finetune.io.paths import LAST_CHECKPOINT, PATH_KEY
from finetune.io.study import storage_address

SWEEP_FLAGS = {"-m", "--multirun"}

_FLAGS_WITH_VALUE = (
    "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p",
    "--experimental-rerun",
)  # fmt: skip

_INFO_FLAGS = ("--info", "-i")

_FLAGS = (
    *_FLAGS_WITH_VALUE, *_INFO_FLAGS, *SWEEP_FLAGS, "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r",
    "--shell-completion", "-sc",
)  # fmt: skip
"""Hydra's own; long ones may be abbreviated."""

_FLAGS_OF_ANY_MODE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")

SWEEP_GROUPS = ("sweep", "sweep/space")
"""Groups whose options ask for a sweep."""

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""What `--info` shows."""


def prepare_arguments(command: str, argv: Sequence[str]) -> list[str]:
    """Check the arguments of a command and return them as Hydra takes them; let Hydra know the models that they name.

    Raises:
        FileNotFoundError: `resume=` names no run that can be resumed.
        ValueError: an argument would be misread.
    """
    words = strip_dashes(argv)
    if command == "train" and _asks_for_sweep(words):
        words = ["-m", *words]
    reject_misread_arguments(command, words)
    words = expand_logger_keys(expand_resume(words)) if command == "train" else words
    register_prefixed_models(words)
    return quote_paths(words)


def strip_dashes(argv: Sequence[str]) -> list[str]:
    """Return arguments with `--key=value`, as the agent of W&B sends it, as `key=value`; Hydra's flags stay.

    Raises:
        ValueError: a flag is not Hydra's.
    """
    words: list[str] = []
    for i, word in enumerate(argv):
        is_value = i > 0 and argv[i - 1] in _FLAGS_WITH_VALUE
        if not word.startswith("-") or word == "-" or is_value or is_hydra_flag(word):
            words.append(word)
        elif "=" in word and word.startswith("--"):
            words.append(word[2:])
        else:
            raise ValueError(
                f"{word} is no flag. Arguments have no dashes here: {word.lstrip('-').partition('=')[0]}=..."
            )
    return words


def is_hydra_flag(word: str) -> bool:
    """Return whether an argument is a flag of Hydra's, with or without its value."""
    name = word.partition("=")[0]
    if word.startswith("--") and len(name) > 2:
        return any(flag.startswith(name) for flag in _FLAGS)
    return name in _FLAGS


def _asks_for_sweep(words: Sequence[str]) -> bool:
    """Return whether `sweep=NAME` or `sweep/space=NAME` asks for a sweep, without the flag for it or one of another mode."""
    named = [
        word for word in words if override_key(word) in SWEEP_GROUPS and word.partition("=")[2] not in ("", "null")
    ]
    modes = [word for word in words if word.startswith("-") and word.partition("=")[0] not in _FLAGS_OF_ANY_MODE]
    return bool(named) and not modes and not any(override_key(word) == "resume" for word in words)


def drop_sweep_words(words: Sequence[str]) -> list[str]:
    """Return the overrides of a run without those of its sweep, which would start the sweep once more."""
    return [word for word in words if override_key(word).replace("/", ".").split(".")[0] != "sweep"]


def reject_misread_arguments(command: str, argv: Sequence[str]) -> None:
    """Refuse arguments that Hydra would answer with its own usage, or with silence.

    Raises:
        ValueError: says which.
    """
    for key in schema.conf_keys(f"{command}.yaml"):
        count = sum(word.startswith(f"{key}=") for word in argv)
        if key in ("ckpt", "source", "copy_to") and count > 1:
            raise ValueError(
                f"{key} is given more than once. For several images give a folder, a list (.txt), or a pattern in quotes."
            )


# --- paths -------------------------------------------------------------------------------------------------------


def quote_paths(argv: Sequence[str]) -> list[str]:
    """Quote the values of path keys, so that Hydra's grammar does not trip over `=`, `,`, `(`, `~` or letters.

    In a sweep, commas separate values, unless a file of that very name exists.
    """
    sweep = any(word in SWEEP_FLAGS for word in argv)
    flags, overrides = [], []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in _FLAGS_WITH_VALUE and rest:
            flags += [word, rest.pop(0)]
        elif word in _INFO_FLAGS:  # whose value may be left out: joined to it, so that it takes no override for one
            flags.append(f"--info={rest.pop(0) if rest and rest[0] in _INFO else 'all'}")
        elif word.startswith("-"):
            flags.append(word)
        else:
            overrides.append(_quote_path(word, sweep))
    return [*flags, *overrides]  # flags in front: Hydra's parser wants all overrides in one piece


def _quote_path(override: str, sweep: bool) -> str:
    key, equals, value = override.partition("=")
    if not equals or not _is_verbatim(key) or value in ("", "null", "???"):
        return override
    if value[0] in "'\"" or "${" in value:
        return override
    if not PATH_KEY.fullmatch(key):
        return _quote(key, value)
    path = os.path.expanduser(value)
    if sweep and "," in value and not os.path.exists(path):
        return override
    return _quote(key, path)


def _is_verbatim(key: str) -> bool:
    """Return whether a value is taken as it is typed: a path, or a regular expression."""
    return bool(PATH_KEY.fullmatch(key)) or key.lstrip("+") == "data.group"


def _quote(key: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\") if value.endswith("\\") else value
    return f'{key}="{escaped.replace(chr(34), chr(92) + chr(34))}"'


def config_folders(words: Sequence[str]) -> list[Path]:
    """Return the folders of the user's own YAML files, in the order in which `--config-dir` or `-cd` names them."""
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return [Path(folder).expanduser() for flag, folder in pairwise(parts) if flag in ("--config-dir", "-cd")]


def plain_key(override: str) -> str:
    """Return the key of an override by which an option and a value are one: `data/augment` is `data.augment`."""
    return override_key(override).replace("/", ".")


def format_value(value: Any) -> str:
    """Return a value of a YAML file in the grammar of overrides.

    >>> format_value({"a": [1, None, True], "b": "x, y"})
    '{a:[1,null,true],b:"x, y"}'
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{format_value(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, str) and "${" not in value:
        return _quote("", value)[1:]
    return str(value)


def unquote_path(override: str) -> str:
    """Return an override of a path as it is typed, without the quotes of `quote_paths`."""
    key, _, value = override.partition("=")
    if not _is_verbatim(key) or len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return override
    return f"{key}={value[1:-1].replace(chr(92) + chr(34), chr(34))}"


SWEEP_RECORD = "multirun.yaml"
"""What a sweep was started with, in its folder; Hydra's sweepers write it."""


# --- resume= -----------------------------------------------------------------------------------------------------


def override_key(override: str) -> str:
    """Return the key that an override sets: `model` of `model=resnet18`, `callbacks` of `+callbacks=ema`."""
    return override.partition("=")[0].lstrip("+~")


def expand_resume(argv: Sequence[str]) -> list[str]:
    """Replace `resume=RUN` by the overrides of that run and `ckpt_path=`; other arguments override them.

    `resume=SWEEP` repeats a sweep in its folder, where its points are recognised.

    Raises:
        FileNotFoundError: RUN is not the folder of a run or a sweep, or the run saved nothing.
        ValueError: the record of its overrides is damaged, or holds more than overrides.
    """
    resumes = [word for word in argv if override_key(word) == "resume"]
    rest = [word for word in argv if override_key(word) != "resume"]
    named = resumes[-1].partition("=")[2].strip("'\"") if resumes else ""
    if named in ("", "null"):
        return rest
    folder = Path(named).expanduser().absolute()
    folder = folder.parents[1] if folder.name == LAST_CHECKPOINT.name else folder
    is_sweep = (folder / SWEEP_RECORD).is_file() and not (folder / ".hydra").exists()
    if is_sweep:
        return _repeat_sweep(folder, named, rest)
    if SWEEP_FLAGS & set(rest):
        raise ValueError(
            f"resume={named} goes on with one run; leave -m out, or give ckpt_path= and the choices to sweep over."
        )
    if not (folder / ".hydra" / "overrides.yaml").is_file():
        raise FileNotFoundError(
            f"resume={named}: there is no run in it (no .hydra/overrides.yaml), and no sweep ({SWEEP_RECORD}); give the folder of a run, as it was printed at its end. "
            "To go on from a checkpoint alone, repeat the choices of its run and give ckpt_path=FILE."
        )
    if not (folder / LAST_CHECKPOINT).is_file():
        raise FileNotFoundError(
            f"resume={named}: that run has saved nothing ({LAST_CHECKPOINT} is not there); start it again."
        )
    record = folder / ".hydra"
    recorded = drop_sweep_words(_recorded_overrides(record / "overrides.yaml", record / "hydra.yaml", "", named))
    return [*_repeated(recorded, rest, "ckpt_path"), *rest, f"ckpt_path={folder / LAST_CHECKPOINT}"]


def _repeat_sweep(folder: Path, named: str, rest: Sequence[str]) -> list[str]:
    """Return the arguments that repeat a sweep in its own folder.

    Its launcher is not among what is repeated: a record would say what this machine runs.
    """
    record = folder / SWEEP_RECORD
    recorded = _recorded_overrides(record, record, "hydra.overrides.task", named)
    flags = [word for word in rest if word in SWEEP_FLAGS] or ["-m"]
    typed = [word for word in rest if word not in SWEEP_FLAGS]
    return [*flags, *_repeated(recorded, typed), *typed, f"hydra.sweep.dir={folder}"]


def _repeated(recorded: Sequence[str], rest: Sequence[str], *others: str) -> list[str]:
    """Return recorded overrides without those that are given anew."""
    overridden = {plain_key(word) for word in rest} | {"resume", *others}
    return [word for word in recorded if plain_key(word) not in overridden]


def _recorded_overrides(words: Path, place: Path, key: str, named: str) -> list[str]:
    """Read the overrides of a run or a sweep, with paths that are valid from here.

    Args:
        words: the file that holds them.
        place: the file that holds Hydra's own node, with the folder in which the run was started.
        key: where they are in that file.
        named: what `resume=` was given.
    """
    try:
        cwd = Path(OmegaConf.load(place).hydra.runtime.cwd)
        overrides: Any = OmegaConf.load(words)
        overrides = OmegaConf.select(overrides, key) if key else overrides
        if not isinstance(overrides, ListConfig):
            raise ValueError("it is no list of words")
        recorded = [str(word) for word in overrides]
    # a damaged file can be anything
    except Exception as error:
        raise ValueError(f"resume={named}: {words} cannot be read ({str(error).splitlines()[0]}).") from error
    for word in recorded:
        # Hydra records choices of a run and nothing else; a record with more would say what this machine runs
        if word.startswith("-") or override_key(word).partition(".")[0].startswith("hydra"):
            raise ValueError(f"resume={named}: {words} holds {word!r}, which is no choice of a run.")
    return [resolve_path(word, cwd) for word in recorded]


def resolve_path(override: str, cwd: Path) -> str:
    """Make a path, or each of those of a sweep, absolute that was relative to the folder in which the run was started."""
    key, _, value = override.partition("=")
    whole = value.strip("'\"")
    if override_key(override) == "sweep.storage" and whole not in ("", "null") and "${" not in whole:
        return _quote(key, storage_address(whole, cwd, cwd))  # its file need not be there: it would be made here
    if not PATH_KEY.fullmatch(key):
        return override
    for names in ([whole], whole.split(",")):
        found = [cwd / os.path.expanduser(name) for name in names]
        if all(path.exists() for path in found):
            return f"{key}={','.join(map(str, found))}"
    return override
