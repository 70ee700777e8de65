"""`resume=RUN`: the words that a run was started with, for a run that goes on with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import ListConfig, OmegaConf

from finetune.config import LAST, PATH_KEY


def key_of(word: str) -> str:
    """What a word sets: `model` of `model=resnet18`, `callbacks` of `+callbacks=ema`."""
    return word.partition("=")[0].lstrip("+~")


def repeated(words: Sequence[str]) -> list[str]:
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
    folder = folder.parents[1] if folder.name == LAST.name else folder
    record = folder / ".hydra"
    if not (record / "overrides.yaml").is_file():
        raise FileNotFoundError(
            f"resume={named}: there is no run in it (no .hydra/overrides.yaml); give the folder of a run, as it was printed at its end. "
            "To go on from a checkpoint alone, repeat the choices of its run and give ckpt_path=FILE."
        )
    if not (folder / LAST).is_file():
        raise FileNotFoundError(f"resume={named}: that run has saved nothing ({LAST} is not there); start it again.")
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
    return [*repeats, *rest, f"ckpt_path={folder / LAST}"]


def _from(word: str, cwd: Path) -> str:
    """A path that was relative to the folder in which the run was started."""
    key, _, value = word.partition("=")
    path = os.path.expanduser(value.strip("'\""))
    if not PATH_KEY.fullmatch(key) or os.path.isabs(path) or not (cwd / path).exists():
        return word
    return f"{key}={cwd / path}"
