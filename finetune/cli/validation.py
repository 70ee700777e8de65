"""Whether a configuration makes sense: all that can be told without data, at once, and before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.cli.instantiate import allowed_prefixes, describe_allowed_targets
from finetune.cli.schema import (
    CHOICES,
    FORMATS,
    GROUP_FIELDS,
    METRICS,
    PREPROCESS_FIELDS,
    RANGES,
    STRATEGY_FIELDS,
    TRAINER_FIELDS,
    shipped,
    shipped_keys,
)
from finetune.io.paths import CONF, checkpoint_path, last_checkpoint_path, weights_path
from finetune.runtime.mappings import select
from finetune.runtime.suggestions import unknown_name


def validate(cfg: DictConfig, command: str = "train") -> None:
    """Look at every value of a command's configuration that can be judged without data.

    Raises:
        ValueError: lists all faults, a line each.
    """
    faults = list(find_faults(cfg, command))
    if faults:
        raise ValueError(list_faults(faults))


def list_faults(faults: Sequence[str]) -> str:
    """Faults as the text of an error."""
    return "\n- ".join([f"{len(faults)} things are wrong:", *faults]) if len(faults) > 1 else faults[0]


def find_faults(cfg: DictConfig, command: str) -> Iterator[str]:
    """What is wrong with a configuration, a sentence each."""
    if unreadable := list(_unreadable(cfg)):
        yield from unreadable  # what else is wrong may come of these
        return
    yield from _unknown_keys(cfg, command)
    yield from _not_given(cfg, command)
    yield from _wrong_files(cfg)
    yield from _wrong_values(cfg, command)
    yield from _wrong_targets(cfg)
    yield from _wrong_together(cfg, command)


def _unreadable(cfg: DictConfig) -> Iterator[str]:
    """Values that name others which are not there: `${optimizer.ls}`."""
    for key, value in _leaves(OmegaConf.to_container(cfg, resolve=False)):
        if isinstance(value, str) and "${" in value and "${hydra:" not in value:
            try:
                OmegaConf.select(cfg, key)
            except OmegaConfBaseException as error:
                yield f"{key}={value}: {str(error).splitlines()[0]}"


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield prefix, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def _unknown_keys(cfg: DictConfig, command: str) -> Iterator[str]:
    """`+modle=...` adds a key that nobody reads."""
    top = {*shipped_keys(f"{command}.yaml")} - {"defaults"}
    top |= {p.name for p in CONF.iterdir() if p.is_dir()}
    sections: dict[str, tuple[str, ...]] = {
        "": tuple(top),
        "data": shipped_keys("data/_base.yaml"),
        "model": shipped_keys("model/_base.yaml"),
        "model.preprocess": PREPROCESS_FIELDS,
        "loss": tuple(shipped("train.yaml").loss),
        "paths": shipped_keys("paths/default.yaml"),
        "strategy": STRATEGY_FIELDS,
        "strategy.groups.*": GROUP_FIELDS,
        "trainer": (*TRAINER_FIELDS, "_target_", "compile"),
    }
    for section, known in sections.items():
        for name, value in _values(cfg, section) if section else [("", cfg)]:
            if not isinstance(value, Mapping):
                if section in ("data", "model", "loss", "paths", "strategy", "trainer"):
                    yield f"{name} must be a group of keys, got {value}; give {name}.KEY=..., or a name of `{name}=`."
                continue
            before = f"{name}." if name else ""
            for key in value:
                if str(key) not in known:
                    yield unknown_name("key", f"{before}{key}", [f"{before}{k}" for k in known])


def _values(cfg: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The values of a key that are not null, by their names; `*` is every item of a list."""
    first, star, rest = key.partition(".*")
    value = select(cfg, first)
    if value is None:
        return
    if not star:
        yield key, value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i in range(len(value)):
            found = value[i] if not rest else select(value[i], rest[1:])
            if found is not None:
                yield f"{first}[{i}]{rest}", found


def _wrong_files(cfg: DictConfig) -> Iterator[str]:
    if cfg.get("ckpt"):
        try:
            checkpoint_path(str(cfg.ckpt))
        except FileNotFoundError as error:
            yield f"ckpt={error}"
    if cfg.get("copy_to") is not None and Path(str(cfg.copy_to)).is_file():
        yield f"copy_to={cfg.copy_to} is a file; give a folder."
    for key, find_file in (("model.weights", weights_path), ("ckpt_path", last_checkpoint_path)):
        try:
            if (value := select(cfg, key)) is not None:
                find_file(str(value))
        except FileNotFoundError as error:
            yield str(error)


def _wrong_values(cfg: DictConfig, command: str) -> Iterator[str]:
    formats = FORMATS.get(command)
    for key, known in [*CHOICES.items(), *([("format", formats)] if formats else [])]:
        value = select(cfg, key)
        if value is None or any(value == k and type(value) is type(k) for k in known):
            continue
        names = [str(k).lower() if isinstance(k, bool) else str(k) for k in known]
        if all(isinstance(k, bool) for k in known):
            yield f"{key} must be true or false, got {value}."
        else:
            yield unknown_name(key, str(value), names, f"It is one of {', '.join(dict.fromkeys(names))}.")
    if select(cfg, "monitor") is not None and cfg.monitor not in METRICS:
        yield unknown_name("metric", str(cfg.monitor), METRICS)
    for key, (kind, least, most) in RANGES.items():
        for name, value in _values(cfg, key):
            if fault := _range_fault(value, kind, least, most):
                yield f"{name} must be {fault}, got {value}."
    workers = select(cfg, "data.num_workers")
    if workers is not None and workers != "auto" and _range_fault(workers, int, 0, None):
        yield f"data.num_workers must be auto or a whole number from 0 on, got {workers}."
    devices = select(cfg, "trainer.devices")
    if isinstance(devices, int | float) and _range_fault(devices, int, 1, None) and devices != -1:
        yield f"trainer.devices must be auto, a whole number from 1 on, or a list of devices, got {devices}."
    classes = select(cfg, "data.classes")
    if isinstance(classes, str | int | float):
        yield f"data.classes is a list, data.classes=[{classes},...], got {classes}."


def _wrong_targets(cfg: DictConfig) -> Iterator[str]:
    """`_target_` names code: only allowed places, wherever it stands."""
    for key, value in _leaves(OmegaConf.to_container(cfg, resolve=False)):
        if key.split(".")[-1] == "_target_" and value is not None and not str(value).startswith(allowed_prefixes()):
            yield f"{key}={value} is not allowed. {describe_allowed_targets()}"


def _wrong_together(cfg: DictConfig, command: str) -> Iterator[str]:
    if command in ("train", "check") and "data" in cfg:
        root = select(cfg, "data.root")
        if root is None and select(cfg, "data.dataset") is None:
            yield "data.root is missing: give the folder with your images (for data=csv, the table) as data.root=..."
        elif root is not None and not _comes_from_somewhere(cfg) and not Path(str(root)).expanduser().exists():
            yield f"data.root={root}: there is no such folder or table (looked from {Path.cwd()})."
    for key in ("image_size", "per_class"):
        if command == "evaluate" and select(cfg, f"data.{key}") is not None:
            yield f"data.{key} changes nothing in evaluate: images are prepared as the checkpoint says, and all are judged."
    if select(cfg, "quantize") is not None and select(cfg, "format") != "onnx":
        yield f"quantize={cfg.quantize} is for format=onnx, not for {select(cfg, 'format')}."
    end, every = select(cfg, "trainer.max_epochs"), select(cfg, "trainer.check_val_every_n_epoch")
    judged = str(select(cfg, "monitor")).startswith("val/")
    numbers = isinstance(end, int) and isinstance(every, int)
    if judged and numbers and 0 < end < every:
        yield (
            f"monitor={cfg.monitor} would never be measured: trainer.check_val_every_n_epoch={every} in {end} epochs; "
            "give monitor=train/loss, or validate more often."
        )
    if judged and select(cfg, "trainer.limit_val_batches") == 0:
        yield f"monitor={cfg.monitor} would never be measured: trainer.limit_val_batches=0; give monitor=train/loss."


def _not_given(cfg: DictConfig, command: str) -> Iterator[str]:
    """Keys that must be given, and those that must not be null."""
    defaults = shipped(f"{command}.yaml")
    for key in defaults:
        default = "???" if OmegaConf.is_missing(defaults, key) else defaults[key]
        value = None if OmegaConf.is_missing(cfg, key) else cfg.get(key)
        if default == "???" and value in (None, ""):
            yield f"{key} is missing: give it as {key}=..."
        elif default is not None and key != "defaults" and value is None:
            yield f"{key} must not be null; its default is {default}."
    if command != "train":
        return
    defaults = {
        "data": shipped("data/_base.yaml"),
        "model": shipped("model/_base.yaml"),
        "loss": defaults.loss,
        "optimizer": {"lr": "0.001"},
        "scheduler": {"warmup": 0},
        "strategy": {"views": 1, "pretrained": True},
    }
    for section, own in defaults.items():
        values: Any = OmegaConf.to_container(own) if isinstance(own, DictConfig) else own
        given = select(cfg, section)
        for key, default in values.items():
            if default is not None and isinstance(given, Mapping) and key in given and select(given, key) is None:
                yield f"{section}.{key} must not be null; its default is {default}."


def _range_fault(value: Any, kind: type, least: float | None, most: float | None) -> str | None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    whole = "a whole number" if kind is int else "a number"
    bounds = f" from {least}" + (f" to {most}" if most is not None else " on")
    if value is None:
        return None
    if not numeric or not math.isfinite(value) or (kind is int and not float(value).is_integer()):
        return whole + bounds
    if (least is not None and value < least) or (most is not None and value > most):
        return whole + bounds
    return None


def _comes_from_somewhere(cfg: DictConfig) -> bool:
    """Whether the data can be fetched, or are made by a data set's own class."""
    return select(cfg, "data.url") is not None or select(cfg, "data.dataset") is not None
