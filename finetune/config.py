"""The configuration: where it lies, what is known, what may be instantiated, and whether it makes sense.

Importing this does not import torch, so that a typo is answered at once.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
WEIGHT_FILES = (".pth", ".pt", ".safetensors", ".ckpt")


def options(group: str) -> list[str]:
    """The names that a config group takes, sorted."""
    names = {path.stem for path in (CONF / group).glob("*.yaml")}
    if group == "model":
        names = {n for n in names if not n.startswith("_")} | set(FAMILIES)
    return sorted(names)


def register_models() -> None:
    """Fill Hydra's `model` group from the table of families; `model/_base.yaml` holds the other keys."""
    from hydra.core.config_store import ConfigStore  # here: the classes work without hydra

    store = ConfigStore.instance()
    for name in FAMILIES:
        if not (CONF / "model" / f"{name}.yaml").exists():
            store.store(group="model", name=name, node={"defaults": ["_base", "_self_"], "name": name})


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
    if not (inspect.isclass(cls) and issubclass(cls, bases) and f"{cls.__module__}.".startswith(_prefixes())):
        raise ValueError(f"_target_: {target} is not a {wanted} from {', '.join(p[:-1] for p in _prefixes())}.")
    try:
        inspect.signature(cls).bind_partial(**values)
    except TypeError as error:
        takes = [n for n in inspect.signature(cls).parameters if n not in ("self", "args", "kwargs", "params")]
        raise ValueError(f"{target}: {error}. It takes {', '.join(takes)}.") from error
    return partial(cls, **values)


def _prefixes() -> tuple[str, ...]:
    return (
        *ALLOWED,
        *(f"{p.strip()}." for p in os.environ.get("FINETUNE_ALLOW", "").split(",") if p.strip()),
    )


def _locate(target: str) -> Any:
    from importlib import import_module

    if not target.startswith(_prefixes()):
        raise ValueError(
            f"_target_: {target} is not allowed. A configuration may name classes under "
            f"{', '.join(p[:-1] for p in _prefixes())}; FINETUNE_ALLOW=package adds one."
        )
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


def claim_folder(cfg: DictConfig, folder: Path) -> None:
    """Write `config.yaml` into a run folder that nobody else uses.

    Raises:
        FileExistsError: another run has it.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "config.yaml").open("x", encoding="utf-8") as file:
            file.write(OmegaConf.to_yaml(cfg, resolve=True))
    except FileExistsError as error:
        raise FileExistsError(
            f"{folder} holds another run; give another hydra.run.dir, or none for a folder with the date."
        ) from error


# --- whether it makes sense --------------------------------------------------------------------------------------

METRICS = ("val/acc", "val/loss", "val/f1", "val/auroc", "train/acc", "train/loss")
"""What `monitor` may name: what FineTuner logs."""
_CHOICES: dict[str, tuple[Any, ...]] = {
    "model.head_init": ("default", "xavier_uniform", "xavier_normal", "zero"),
    "data.augment": ("auto", "none", "basic", "trivial", "rand"),
    "data.on_bad_file": ("skip", "error"),
    "data.cache_images": ("auto", "ram", "disk", "off"),
    "strategy.cache": ("auto", "never"),
    "strategy.cache_dtype": ("float32", "float16"),
    "strategy.frozen_norm": ("eval", "train"),
    "loss.class_weights": ("none", "auto"),
    "trainer.compile": ("auto", True, False),
    "split": ("val", "test"),
    "quantize": ("int8",),
    "embeddings": (True, False),
    "report": (True, False),
    "tta": ("none", "flip", "five_crop"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "precision": ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
}
_FORMATS: dict[str, tuple[Any, ...]] = {
    "predict": ("csv", "jsonl", "parquet"),
    "export": ("onnx", "torch_export", "safetensors", "state_dict"),
}
# key: kind, least, most; None is no bound. A value of null is left to whoever reads it.
_RANGES: dict[str, tuple[type, float | None, float | None]] = {
    "seed": (int, 0, 2**32 - 1),
    "data.batch_size": (int, 1, None),
    "data.val_fraction": (float, 0.001, 0.9),
    "data.per_class": (int, 1, None),
    "data.image_size": (int, 1, 4096),
    "data.split_seed": (int, 0, None),
    "optimizer.lr": (float, 0, None),
    "optimizer.weight_decay": (float, 0, None),
    "optimizer.momentum": (float, 0, 1),
    "scheduler.warmup": (float, 0, None),
    "loss.label_smoothing": (float, 0, 1),
    "loss.aux": (float, 0, None),
    "loss.mixup": (float, 0, None),
    "loss.cutmix": (float, 0, None),
    "strategy.views": (int, 1, None),
    "paths.cache_gib": (float, 0, None),
    "trainer.max_epochs": (int, -1, None),
    "top_k": (int, 1, None),
    "images": (int, 1, None),
    "tolerance": (float, 0, None),
    "temperature": (float, 0.001, 1000),
    "near": (int, 0, 16),
}


def check(cfg: DictConfig, command: str = "train") -> None:
    """Look at every value of a command's configuration that can be judged without data.

    Raises:
        ValueError: lists all faults, a line each.
    """
    faults = list(_faults(cfg, command))
    if faults:
        raise ValueError("\n".join(faults))


def _faults(cfg: DictConfig, command: str) -> Iterator[str]:
    known_keys = {str(key) for key in OmegaConf.load(CONF / f"{command}.yaml")} - {"defaults"}
    known_keys |= {p.name for p in CONF.iterdir() if p.is_dir()}
    for key in cfg:
        if str(key) not in known_keys:  # +modle=... adds a key that nobody reads
            yield unknown("key", str(key), known_keys)
    if (
        command in ("train", "check")
        and "data" in cfg
        and cfg.data.get("root") is None
        and cfg.data.get("dataset") is None
    ):
        yield "data.root is missing: give the folder with your images (for data=csv, the table) as data.root=..."
    yield from _not_given(cfg, command)
    for key in ("image_size", "per_class"):
        if command == "evaluate" and OmegaConf.select(cfg, f"data.{key}") is not None:
            yield f"data.{key} changes nothing in evaluate: images are prepared as the checkpoint says, and all are judged."
    if cfg.get("ckpt"):
        try:
            checkpoint_path(cfg.ckpt)
        except FileNotFoundError as error:
            yield f"ckpt={error}"
    if cfg.get("copy_to") is not None and Path(str(cfg.copy_to)).is_file():
        yield f"copy_to={cfg.copy_to} is a file; give a folder."
    try:
        weights_path(str(OmegaConf.select(cfg, "model.weights")))
    except FileNotFoundError as error:
        yield str(error)
    data_keys = OmegaConf.load(CONF / "data" / "_base.yaml")
    for key in cfg.get("data") or ():
        if key not in data_keys:
            yield unknown("key", f"data.{key}", [f"data.{k!s}" for k in data_keys])
    formats = _FORMATS.get(command)
    for key, known in [*_CHOICES.items(), *([("format", formats)] if formats else [])]:
        value = OmegaConf.select(cfg, key)
        if value is not None and value not in known:
            yield unknown(key, str(value), map(str, known), f"It is one of {', '.join(map(str, known))}.")
    if cfg.get("monitor") is not None and cfg.monitor not in METRICS:
        yield unknown("metric", str(cfg.monitor), METRICS)
    for key, (kind, least, most) in _RANGES.items():
        fault = _range_fault(OmegaConf.select(cfg, key), kind, least, most)
        if fault:
            yield f"{key} must be {fault}, got {OmegaConf.select(cfg, key)}."
    if cfg.get("quantize") is not None and cfg.get("format") != "onnx":
        yield f"quantize={cfg.quantize} is for format=onnx, not for {cfg.format}."
    workers = OmegaConf.select(cfg, "data.num_workers")
    if workers is not None and workers != "auto" and _range_fault(workers, int, 0, None):
        yield f"data.num_workers must be auto or a whole number from 0 on, got {workers}."


def _not_given(cfg: DictConfig, command: str) -> Iterator[str]:
    """Keys of a command that must be given, and those that must not be null."""
    defaults: Any = OmegaConf.load(CONF / f"{command}.yaml")
    for key in defaults:
        default = "???" if OmegaConf.is_missing(defaults, key) else defaults[key]
        value = None if OmegaConf.is_missing(cfg, key) else cfg.get(key)
        if default == "???" and value in (None, ""):
            yield f"{key} is missing: give it as {key}=..."
        elif default is not None and key != "defaults" and value is None:
            yield f"{key} must not be null; its default is {default}."


def _range_fault(value: Any, kind: type, least: float | None, most: float | None) -> str | None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    whole = "a whole number" if kind is int else "a number"
    bounds = f" from {least:g}" + (f" to {most:g}" if most is not None else " on")
    if value is None:
        return None
    if not numeric or (kind is int and not float(value).is_integer()) or value != value:
        return whole + bounds
    if (least is not None and value < least) or (most is not None and value > most):
        return whole + bounds
    return None
