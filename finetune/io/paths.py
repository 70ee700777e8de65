"""Find the files that configuration keys name: the configuration itself, weights and checkpoints."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parents[1]

CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"
"""The folder of the YAML files: inside an installed package, or at the top of the repository."""

PATH_KEY = re.compile(
    r"\+{0,2}(ckpt|ckpt_path|source|copy_to|data\.root|data\.images|model\.weights|weights|.*\.dir|.*_dir)"
)
"""Keys whose values are paths, taken as they are typed."""

UNWRITABLE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers of a file that cannot be written because of its place: a disk that is full or read-only."""

WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".ckpt")


def absolute_paths(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values with the paths among them, files and folders that are there, as absolute ones.

    Args:
        values: of a configuration.
        prefix: key of the values, with a dot.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            result[name] = absolute_paths(value, f"{key}.")
        elif isinstance(value, str) and PATH_KEY.fullmatch(key) and _is_path(key, value):
            result[name] = str(Path(value).expanduser().absolute())
        else:
            result[name] = value
    return result


def _is_path(key: str, value: str) -> bool:
    if key.endswith("weights") and not (value.endswith(WEIGHT_FILES) or os.sep in value):  # a name: default, none
        return False
    return key == "data.root" or Path(value).expanduser().exists()


def weights_path(weights: str) -> Path | None:
    """Return the file that `model.weights` names; None if it is a word such as "default".

    Raises:
        FileNotFoundError: the value looks like a file and there is none.
    """
    if not (weights.endswith(WEIGHT_FILES) or os.sep in weights):
        return None
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"model.weights={weights}: there is no such file (looked in {path.absolute().parent}). "
            "Give a file, or one of: default, none, a name of the weights enum."
        )
    return path


def checkpoint_path(path: str | Path) -> Path:
    """Return the file of a checkpoint; the folder of a run stands for its best one.

    Raises:
        FileNotFoundError: there is no such file.
    """
    given = Path(path).expanduser()
    best = given / "checkpoints" / "best.ckpt"
    if given.is_dir() and best.is_file():
        return best
    if given.is_dir():
        raise FileNotFoundError(f"{path}: a folder, without checkpoints/best.ckpt in it; give a checkpoint's file.")
    if not given.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file (looked from {Path.cwd()}); give a run's checkpoints/best.ckpt."
        )
    return given


LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
"""Where a run keeps the state from which it is resumed, from its folder."""


def last_checkpoint_path(given: str) -> Path:
    """Return the file that `ckpt_path` names; the folder of a run stands for its last checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        if not (path / LAST_CHECKPOINT).is_file():
            raise FileNotFoundError(
                f"ckpt_path={given}: a folder without {LAST_CHECKPOINT} in it: nothing was saved there to go on from."
            )
        return path / LAST_CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(
            f"ckpt_path={given}: there is no such file; give a run's folder, or its {LAST_CHECKPOINT}."
        )
    return path


PREDICTIONS_FILE = "best.npz"
"""Name of the file of predictions on the validation images, in the folder of `best.ckpt`."""

EPOCHS_FILE = "epochs.npz"
"""Name of the file beside it that says of every epoch which validation images were predicted correctly."""
