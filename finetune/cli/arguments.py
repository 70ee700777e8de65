"""Rewrite the words of a command line for Hydra: quoted paths, and the words of a resumed run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import ListConfig, OmegaConf

from finetune.io import paths
from finetune.io.paths import LAST_CHECKPOINT, PATH_KEY

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
    if not equals or not paths.PATH_KEY.fullmatch(key) or value in ("", "null", "???"):
        return argument
    if value[0] in "'\"" or "${" in value:
        return argument
    path = os.path.expanduser(value)
    if sweep and "," in value and not os.path.exists(path):
        return argument
    escaped = path.replace("\\", "\\\\") if path.endswith("\\") else path
    return f'{key}="{escaped.replace(chr(34), chr(92) + chr(34))}"'


def key_of(word: str) -> str:
    """What a word sets: `model` of `model=resnet18`, `callbacks` of `+callbacks=ema`."""
    return word.partition("=")[0].lstrip("+~")


def expand_resume(words: Sequence[str]) -> list[str]:
    """The words of a run that `resume=` names, then those given beside it, which count more.

    Raises:
        FileNotFoundError: it is not the folder of a run, or the run saved nothing.
        ValueError: the record of its words is damaged, or holds more than that.
    """
    given = [word for word in words if key_of(word) == "resume"]
    rest = [word for word in words if key_of(word) != "resume"]
    named = given[-1].partition("=")[2].strip("'\"") if given else ""
    if named in ("", "null"):
        return rest
    folder = Path(named).expanduser().absolute()
    folder = folder.parents[1] if folder.name == LAST_CHECKPOINT.name else folder
    record = folder / ".hydra"
    if not (record / "overrides.yaml").is_file():
        raise FileNotFoundError(
            f"resume={named}: there is no run in it (no .hydra/overrides.yaml); give the folder of a run, as it was printed at its end. "
            "To go on from a checkpoint alone, repeat the choices of its run and give ckpt_path=FILE."
        )
    if not (folder / LAST_CHECKPOINT).is_file():
        raise FileNotFoundError(
            f"resume={named}: that run has saved nothing ({LAST_CHECKPOINT} is not there); start it again."
        )
    counts = {key_of(word) for word in rest} | {"ckpt_path", "resume"}
    try:
        cwd = Path(OmegaConf.load(record / "hydra.yaml").hydra.runtime.cwd)
        words_then = OmegaConf.load(record / "overrides.yaml")
        if not isinstance(words_then, ListConfig):
            raise ValueError("it is no list of words")
        then = [str(word) for word in words_then]
    # a damaged file can be anything
    except Exception as error:
        raise ValueError(f"resume={named}: {record} cannot be read ({str(error).splitlines()[0]}).") from error
    # Hydra records choices of a run and nothing else; a record with more would say what this machine is to run
    if strange := [word for word in then if word.startswith("-") or key_of(word).partition(".")[0].startswith("hydra")]:
        raise ValueError(f"resume={named}: {record} holds {strange[0]!r}, which is no choice of a run.")
    repeats = [_from(word, cwd) for word in then if key_of(word) not in counts]
    return [*repeats, *rest, f"ckpt_path={folder / LAST_CHECKPOINT}"]


def _from(word: str, cwd: Path) -> str:
    """A path that was relative to the folder in which the run was started."""
    key, _, value = word.partition("=")
    path = os.path.expanduser(value.strip("'\""))
    if not PATH_KEY.fullmatch(key) or os.path.isabs(path) or not (cwd / path).exists():
        return word
    return f"{key}={cwd / path}"
