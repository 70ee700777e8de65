"""Validate a configuration: find all faults that show without data, at once, and before torch is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.cli.acceptance_keys import find_acceptance_faults
from finetune.cli.contradictions import find_contradictions
from finetune.cli.fold_keys import find_fold_faults
from finetune.cli.instantiate import allowed_prefixes, describe_allowed_targets
from finetune.cli.logger_keys import find_missing_extras
from finetune.cli.schema import (
    CHOICES,
    COLUMN_PARTS,
    FORMATS,
    GROUP_FIELDS,
    METRICS,
    PREPROCESS_FIELDS,
    RANGES,
    STRATEGY_FIELDS,
    TRAINER_FIELDS,
    conf_keys,
    load_conf,
    loss_keys,
)
from finetune.data.layout import ClassDepth
from finetune.images.depth_option import parse_depth
from finetune.io.paths import CONF, checkpoint_path, last_checkpoint_path, weights_path
from finetune.runtime.mappings import select
from finetune.runtime.suggestions import unknown_name
from finetune.runtime.timing import parse_duration


def validate(cfg: DictConfig, command: str = "train") -> None:
    """Validate every value of a command's configuration that can be validated without data.

    Raises:
        ValueError: lists all faults, a line each.
    """
    faults = list(find_faults(cfg, command))
    if faults:
        raise ValueError(format_faults(faults))


def format_faults(faults: Sequence[str]) -> str:
    """Return faults as the text of an error."""
    return "\n- ".join([f"{len(faults)} things are wrong:", *faults]) if len(faults) > 1 else faults[0]


def find_faults(cfg: DictConfig, command: str) -> Iterator[str]:
    """Yield the faults of a configuration, a sentence each."""
    if unresolved := list(_validate_interpolations(cfg)):
        yield from unresolved  # other faults may come of these
        return
    yield from _validate_keys(cfg, command)
    yield from _validate_required(cfg, command)
    yield from _validate_files(cfg)
    yield from _validate_choices(cfg, command)
    yield from _validate_ranges(cfg)
    yield from _validate_targets(cfg)
    yield from find_missing_extras(cfg)
    yield from _validate_name(cfg)
    yield from _validate_data(cfg, command)
    yield from _validate_reading(cfg)
    yield from find_fold_faults(cfg) if command != "evaluate" else _validate_unused(cfg)
    yield from find_contradictions(cfg)
    yield from find_acceptance_faults(cfg)


def _validate_interpolations(cfg: DictConfig) -> Iterator[str]:
    """Find values that name others which are not there: `${optimizer.ls}`."""
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


def _validate_keys(cfg: DictConfig, command: str) -> Iterator[str]:
    """Find unknown keys: `+modle=...` adds one that nothing reads."""
    top = {*conf_keys(f"{command}.yaml")} - {"defaults"}
    top |= {p.name for p in CONF.iterdir() if p.is_dir()}
    sections: dict[str, tuple[str, ...]] = {
        "": tuple(top),
        "data": conf_keys("data/_base.yaml"),
        "model": conf_keys("model/_base.yaml"),
        "model.options": (),  # of the library's own constructor
        "model.preprocess": PREPROCESS_FIELDS,
        "loss": loss_keys(str(select(cfg, "loss._target_"))),
        "paths": conf_keys("paths/default.yaml"),
        "strategy": STRATEGY_FIELDS,
        "strategy.groups.*": GROUP_FIELDS,
        "trainer": (*TRAINER_FIELDS, "_target_", "compile"),
    }
    for section, known in sections.items():
        for name, value in _values(cfg, section) if section else [("", cfg)]:
            if not isinstance(value, Mapping):
                if section in ("data", "model", "loss", "paths", "strategy", "trainer"):
                    yield f"{name} must be a group of keys, got {value}; give {name}.KEY=..., or a name of `{name}=`."
                elif name in ("model.options", "model.preprocess"):
                    yield f"{name} takes keys and values, {name}={{KEY: VALUE}}, got {value}."
                continue
            prefix = f"{name}." if name else ""
            for key in value if known else ():
                if str(key) not in known:
                    yield unknown_name("key", f"{prefix}{key}", [f"{prefix}{k}" for k in known])


def _values(cfg: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of a key that are not null, with their names; `*` is every item of a list."""
    first, star, rest = key.partition(".*")
    value = select(cfg, first)
    if value is None:
        return
    if not star:
        yield key, value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i in range(len(value)):
            item = value[i] if not rest else select(value[i], rest[1:])
            if item is not None:
                yield f"{first}[{i}]{rest}", item


def _validate_files(cfg: DictConfig) -> Iterator[str]:
    if cfg.get("ckpt"):
        try:
            checkpoint_path(str(cfg.ckpt))
        except FileNotFoundError as error:
            yield f"ckpt={error}"
    if cfg.get("copy_to") is not None and Path(str(cfg.copy_to)).is_file():
        yield f"copy_to={cfg.copy_to} is a file; give a folder."
    for key, find_file in (
        ("model.weights", weights_path),
        ("weights", weights_path),
        ("ckpt_path", last_checkpoint_path),
    ):
        try:
            if (value := select(cfg, key)) is not None:
                find_file(str(value))
        except FileNotFoundError as error:
            yield str(error).removeprefix("" if key == "model.weights" else "model.")


def _validate_choices(cfg: DictConfig, command: str) -> Iterator[str]:
    formats = FORMATS.get(command)
    for key, known in [*CHOICES.items(), *([("format", formats)] if formats else [])]:
        value = select(cfg, key)
        if key == "data.augment" and isinstance(value, Mapping):
            yield from _validate_augmentation(value)
            continue
        if value is None or any(value == k and type(value) is type(k) for k in known):
            continue
        names = [str(k).lower() if isinstance(k, bool) else str(k) for k in known]
        if all(isinstance(k, bool) for k in known):
            yield f"{key} must be true or false, got {value}."
        else:
            own = f" A YAML file of your own is data/augment={value}." if key == "data.augment" else ""
            yield unknown_name(key, str(value), names, f"It is one of {', '.join(dict.fromkeys(names))}.{own}")
    known_metrics = (*METRICS, *(f"val/{name}" for name in select(cfg, "metrics") or ()))
    if select(cfg, "monitor") is not None and cfg.monitor not in known_metrics:
        yield unknown_name("metric", str(cfg.monitor), known_metrics)


def _validate_augmentation(value: Mapping[Any, Any]) -> Iterator[str]:
    """Find what is no list of transforms, in a YAML file of the user's own."""
    listed: Any = value.get("transforms")
    if (
        set(value) != {"transforms"}
        or not _is_list(listed)
        or not listed
        or not all(select(item, "_target_") for item in listed)
    ):
        yield (
            "data.augment takes a name, or a list of transforms: "
            f"{{transforms: [{{_target_: torchvision.transforms.v2.NAME, ...}}, ...]}}, got {value}."
        )


def _validate_ranges(cfg: DictConfig) -> Iterator[str]:
    for key, (kind, minimum, maximum) in RANGES.items():
        for name, value in _values(cfg, key):
            if fault := _range_fault(value, kind, minimum, maximum):
                yield f"{name} must be {fault}, got {value}."
    workers = select(cfg, "data.num_workers")
    if workers is not None and workers != "auto" and _range_fault(workers, int, 0, None):
        yield f"data.num_workers must be auto or a whole number from 0 on, got {workers}."
    temperature = select(cfg, "temperature")
    if temperature != "checkpoint" and (fault := _range_fault(temperature, float, 0.001, 1000)):
        yield f"temperature must be checkpoint or {fault}, got {temperature}."
    lr = select(cfg, "optimizer.lr")
    if lr != "auto" and (fault := _range_fault(lr, float, 0, None)):
        yield f"optimizer.lr must be auto or {fault}, got {lr}."
    devices = select(cfg, "trainer.devices")
    if isinstance(devices, int | float) and _range_fault(devices, int, 1, None) and devices != -1:
        yield f"trainer.devices must be auto, a whole number from 1 on, or a list of devices, got {devices}."
    if (limit := select(cfg, "time_limit")) is not None:
        try:
            parse_duration(limit)
        except ValueError:
            yield f"time_limit must be a number of seconds, or of hours, minutes and seconds (90s, 10m, 1h30m), got {limit}."
    classes, models = select(cfg, "data.classes"), select(cfg, "models")
    if isinstance(classes, str | int | float):
        yield f"data.classes is a list, data.classes=[{classes},...], got {classes}."
    if models is not None and not (_is_name(models) or (_is_list(models) and models and all(map(_is_name, models)))):
        yield f"models is a list of names, models=[resnet18,resnet50], got {models}."


def _validate_targets(cfg: DictConfig) -> Iterator[str]:
    """Find `_target_`s that are not allowed, wherever they stand: they name code."""
    for key, value in _leaves(OmegaConf.to_container(cfg, resolve=False)):
        if key.split(".")[-1] == "_target_" and value is not None and not str(value).startswith(allowed_prefixes()):
            yield f"{key}={value} is not allowed. {describe_allowed_targets()}"


def _validate_name(cfg: DictConfig) -> Iterator[str]:
    """Find a name that timm does not have; only timm knows, and it imports torch."""
    if select(cfg, "model.library") != "timm" or OmegaConf.is_missing(cfg.model, "name"):
        return
    from finetune.models import timm_catalog

    try:
        timm_catalog.find_config(str(cfg.model.name))
    except ValueError as error:
        yield str(error)


def _validate_data(cfg: DictConfig, command: str) -> Iterator[str]:
    if command in ("train", "check", "rank") and "data" in cfg:
        root = select(cfg, "data.root")
        if root is None and select(cfg, "data.dataset") is None:
            yield "data.root is missing: give the folder with your images (for data=csv, the table) as data.root=..."
        elif root is not None and not _is_made_on_demand(cfg) and not Path(str(root)).expanduser().exists():
            yield f"data.root={root}: there is no such folder or table (looked from {Path.cwd()})."


def _validate_reading(cfg: DictConfig) -> Iterator[str]:
    """Find what says in no known way how the data are read."""
    depth, columns, group = (select(cfg, f"data.{key}") for key in ("class_depth", "columns", "group"))
    try:
        ClassDepth("auto" if depth is None else depth)
    except ValueError as error:
        yield str(error)
    try:
        parse_depth(select(cfg, "data.depth"))
    except ValueError as error:
        yield str(error)
    if columns is not None and not isinstance(columns, Mapping):
        yield f"data.columns says which column is what, {{path: image_id, label: breed}}; got {columns!r}."
    for part in columns if isinstance(columns, Mapping) else ():
        if part not in COLUMN_PARTS:
            yield unknown_name("key of data.columns:", str(part), COLUMN_PARTS, f"It has {', '.join(COLUMN_PARTS)}.")
    root = select(cfg, "data.root")
    if (
        group is not None and root is not None and Path(str(root)).expanduser().is_dir()
    ):  # a table may have such a column
        try:
            re.compile(str(group))
        except re.error as error:
            yield f"data.group={group!r} is neither a column of the data nor a regular expression ({error})."


def _validate_unused(cfg: DictConfig) -> Iterator[str]:
    """Find keys that change nothing in evaluate."""
    for keys, reason in (
        (("image_size", "resize", "depth"), "images are prepared as the checkpoint says"),
        (("per_class", "folds", "group", "sampler"), "every image of the split is evaluated, once"),
    ):
        for key in keys:
            if select(cfg, f"data.{key}") not in (None, "none", "auto"):
                yield f"data.{key} changes nothing in evaluate: {reason}."


def _validate_required(cfg: DictConfig, command: str) -> Iterator[str]:
    """Find keys that must be given, and those that must not be null."""
    defaults = load_conf(f"{command}.yaml")
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
        "data": load_conf("data/_base.yaml"),
        "model": load_conf("model/_base.yaml"),
        "loss": load_conf("loss/_base.yaml"),
        "optimizer": {"lr": "0.001"},
        "scheduler": {"warmup": 0, "interval": "auto"},
        "strategy": load_conf("strategy/_base.yaml"),
    }
    for section, node in defaults.items():
        values: Any = OmegaConf.to_container(node) if isinstance(node, DictConfig) else node
        given = select(cfg, section)
        for key, default in values.items():
            if default is not None and isinstance(given, Mapping) and key in given and select(given, key) is None:
                yield f"{section}.{key} must not be null; its default is {default}."


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _range_fault(value: Any, kind: type, minimum: float | None, maximum: float | None) -> str | None:
    """Return the range that a value must be in and is not, as words; None where it is."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    number = "a whole number" if kind is int else "a number"
    bounds = f" from {minimum}" + (f" to {maximum}" if maximum is not None else " on")
    if value is None:
        return None
    if not numeric or not math.isfinite(value) or (kind is int and not float(value).is_integer()):
        return number + bounds
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        return number + bounds
    return None


def _is_made_on_demand(cfg: DictConfig) -> bool:
    """Return whether the data can be downloaded, or are made by the class of a data set."""
    return select(cfg, "data.url") is not None or select(cfg, "data.dataset") is not None
