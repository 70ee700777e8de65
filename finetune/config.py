"""The configuration: where it lies, what is known, what may be instantiated, and whether it makes sense.

Importing this does not import torch, so that a typo is answered at once.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.families import FAMILIES, unknown

_HERE = Path(__file__).resolve().parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"
"""The YAML files: inside an installed package, or at the top of the repository."""

ALLOWED = (
    "finetune.", "lightning.pytorch.", "timm.optim.", "torch.optim.", "torchmetrics.", "torchvision.datasets.",
    "torchvision.transforms.",
)  # fmt: skip
"""What `_target_` may name; FINETUNE_ALLOW=package adds to it."""
PATH_KEY = re.compile(r"\+{0,2}(ckpt|ckpt_path|source|copy_to|data\.root|model\.weights|.*\.dir|.*_dir)")
"""Keys whose values are paths, taken as they are typed."""
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a file that cannot be written because of where it is."""
WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".ckpt")


def options(group: str) -> list[str]:
    """The names that a config group takes, sorted."""
    names = {path.stem for path in (CONF / group).glob("*.yaml")}
    names = {name for name in names if not name.startswith("_")}
    return sorted(names | set(FAMILIES) if group == "model" else names)


def register_models() -> None:
    """Fill Hydra's `model` group from the table of families; `model/_base.yaml` holds the other keys."""
    for name in FAMILIES:
        _register_model(name)


@functools.cache
def _register_model(name: str) -> None:
    from hydra.core.config_store import ConfigStore  # here: the classes work without hydra

    if not (CONF / "model" / f"{name}.yaml").exists():
        node = {"defaults": ["_base", "_self_"], "name": name}
        ConfigStore.instance().store(group="model", name=name, node=node)


def factory(spec: Mapping[str, Any] | DictConfig, base: type | tuple[type, ...]) -> partial[Any]:
    """`_target_` and its arguments as a partial: the one place where a configuration names code.

    Only classes under the allowed prefixes, and only subclasses of `base`, checked on the class itself and not on its
    name. Arguments are plain values; nested `_target_`s are not followed.

    Raises:
        ValueError: the target is not allowed, does not exist, or is of another kind.
    """
    values: Any = OmegaConf.to_container(spec, resolve=True) if isinstance(spec, DictConfig) else dict(spec)
    target = values.pop("_target_", None)
    bases = base if isinstance(base, tuple) else (base,)
    wanted = " or ".join(b.__name__ for b in bases)
    if not isinstance(target, str):
        raise ValueError(f"A {wanted} is named by _target_, got {target!r}.")
    cls = _locate(target)
    if not (inspect.isclass(cls) and issubclass(cls, bases) and f"{cls.__module__}.".startswith(allowed_prefixes())):
        raise ValueError(f"_target_: {target} is not a {wanted} from {', '.join(p[:-1] for p in allowed_prefixes())}.")
    try:
        inspect.signature(cls).bind_partial(**values)
    except TypeError as error:
        takes = [n for n in inspect.signature(cls).parameters if n not in ("self", "args", "kwargs", "params")]
        raise ValueError(f"{target}: {error}. It takes {', '.join(takes)}.") from error
    return partial(cls, **values)


def targets_allowed() -> str:
    """What `_target_` may name, in words."""
    names = ", ".join(prefix[:-1] for prefix in allowed_prefixes())
    return f"A configuration may name classes under {names}; FINETUNE_ALLOW=package adds one."


def allowed_prefixes() -> tuple[str, ...]:
    return (
        *ALLOWED,
        *(f"{p.strip()}." for p in os.environ.get("FINETUNE_ALLOW", "").split(",") if p.strip()),
    )


def _locate(target: str) -> Any:
    from importlib import import_module

    if not target.startswith(allowed_prefixes()):
        raise ValueError(f"_target_: {target} is not allowed. {targets_allowed()}")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        extra = f" Is its package installed ({error.name})?" if error.name else ""
        raise ValueError(f"_target_: {target} cannot be imported.{extra}") from error
    except AttributeError as error:
        names = [n for n in dir(import_module(module)) if not n.startswith("_")]
        raise ValueError(unknown(f"class in {module}", name, names)) from error
    return found


def select(values: Any, key: str) -> Any:
    """The value of a dotted key, or None where it is not there, not given, or cannot be read."""
    for part in key.split("."):
        try:
            values = values.get(part) if isinstance(values, Mapping) else None
        except OmegaConfBaseException:
            return None
    return values


def weights_path(weights: str) -> Path | None:
    """The file that `model.weights` names, or None if it is a word.

    Raises:
        FileNotFoundError: it looks like a file and there is none.
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
    """A checkpoint's file; the folder of a run stands for its best.

    Raises:
        FileNotFoundError: there is none.
    """
    found = Path(path).expanduser()
    best = found / "checkpoints" / "best.ckpt"
    if found.is_dir() and best.is_file():
        return best
    if found.is_dir():
        raise FileNotFoundError(f"{path}: a folder, without checkpoints/best.ckpt in it; give a checkpoint's file.")
    if not found.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file (looked from {Path.cwd()}); give a run's checkpoints/best.ckpt."
        )
    return found


LAST = Path("checkpoints", "last.ckpt")
"""Where a run keeps the state from which it can go on."""


def last_checkpoint_path(given: str) -> Path:
    """The file that `ckpt_path` names; a run's folder stands for its last checkpoint.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        if not (path / LAST).is_file():
            raise FileNotFoundError(
                f"ckpt_path={given}: a folder without {LAST} in it: nothing was saved there to go on from."
            )
        return path / LAST
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path={given}: there is no such file; give a run's folder, or its {LAST}.")
    return path


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first of several: Lightning's launcher and torchrun say so."""
    return rank() == "0"


def rank() -> str:
    """The number of this process among those of its run, as its launcher says."""
    return next((os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ), "0")


def slurm_job() -> str | None:
    """A name for the run of a batch job of Slurm: its number, which it keeps when it is requeued."""
    if "SLURM_JOB_ID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    parts = [os.environ[key] for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if key in os.environ]
    return "slurm_" + "_".join(parts or [os.environ["SLURM_JOB_ID"]])


def is_requeued() -> bool:
    """Whether this is a job of Slurm that has run before."""
    return slurm_job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def claim_folder(cfg: DictConfig, folder: Path) -> None:
    """Write `config.yaml` into a run folder that nobody else uses.

    Raises:
        FileExistsError: another run has it.
    """
    if not is_first_process():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
    except FileExistsError as error:
        if is_requeued() and folder.name.startswith(str(slurm_job())):  # its words were compared
            for half in (folder / "checkpoints").glob(".*.tmp"):
                half.unlink(missing_ok=True)
            return
        raise FileExistsError(
            f"{folder} holds another run; give another hydra.run.dir, or none for a folder with the date."
        ) from error
