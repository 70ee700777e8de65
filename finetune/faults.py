"""Whether a configuration makes sense: all that can be told without data, at once, and before torch is imported."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config import (
    CONF,
    allowed_prefixes,
    checkpoint_path,
    last_checkpoint_path,
    select,
    targets_allowed,
    weights_path,
)
from finetune.families import unknown

STRATEGY_FIELDS = ("groups", "pretrained", "frozen_norm", "layer_decay", "cache", "views", "cache_dtype", "name")
GROUP_FIELDS = ("match", "depth", "lr", "start", "warmup", "name", "optional")
PREPROCESS_FIELDS = ("size", "resize", "mean", "std", "interpolation")
TRAINER_FIELDS = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "fast_dev_run", "max_epochs", "min_epochs", "max_steps",
    "min_steps", "max_time", "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
    "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "enable_checkpointing",
    "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark",
    "inference_mode", "profiler", "detect_anomaly", "barebones", "sync_batchnorm", "reload_dataloaders_every_n_epochs",
    "enable_autolog_hparams", "model_registry",
)  # fmt: skip
"""What Lightning's Trainer takes, without what a command sets itself; written out here, for asking it imports torch."""

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
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
    "trainer.precision": ("auto", *_PRECISIONS, "16", "32", "64", "bf16", 16, 32, 64),
    "trainer.accelerator": ("auto", "cpu", "cuda", "gpu", "mps", "tpu"),
    "precision": ("auto", *_PRECISIONS),
}
_FORMATS: dict[str, tuple[Any, ...]] = {
    "predict": ("csv", "jsonl", "parquet"),
    "export": ("onnx", "torch_export", "safetensors", "state_dict"),
}
# key: kind, least, most; None is no bound. A value of null is left to whoever reads it, * is every item of a list.
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
    "trainer.num_nodes": (int, 1, None),
    "trainer.accumulate_grad_batches": (int, 1, None),
    "trainer.check_val_every_n_epoch": (int, 1, None),
    "trainer.gradient_clip_val": (float, 0, None),
    "strategy.layer_decay": (float, 0.001, 1),
    "strategy.groups.*.lr": (float, 0, None),
    "strategy.groups.*.start": (float, 0, None),
    "strategy.groups.*.warmup": (float, 0, None),
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
    faults = list(find(cfg, command))
    if faults:
        raise ValueError(listed(faults))


def listed(faults: Sequence[str]) -> str:
    """Faults as the text of an error."""
    return "\n- ".join([f"{len(faults)} things are wrong:", *faults]) if len(faults) > 1 else faults[0]


def find(cfg: DictConfig, command: str) -> Iterator[str]:
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
        "loss": tuple(_shipped("train.yaml").loss),
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
                    yield unknown("key", f"{before}{key}", [f"{before}{k}" for k in known])


def shipped_keys(name: str) -> tuple[str, ...]:
    """The keys at the top of one of our own files, `train.yaml` say."""
    return tuple(str(key) for key in _shipped(name))


@functools.cache
def _shipped(name: str) -> Any:
    """One of our own files, before it is composed."""
    return OmegaConf.load(CONF / name)


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
    formats = _FORMATS.get(command)
    for key, known in [*_CHOICES.items(), *([("format", formats)] if formats else [])]:
        value = select(cfg, key)
        if value is None or any(value == k and type(value) is type(k) for k in known):
            continue
        names = [str(k).lower() if isinstance(k, bool) else str(k) for k in known]
        if all(isinstance(k, bool) for k in known):
            yield f"{key} must be true or false, got {value}."
        else:
            yield unknown(key, str(value), names, f"It is one of {', '.join(dict.fromkeys(names))}.")
    if select(cfg, "monitor") is not None and cfg.monitor not in METRICS:
        yield unknown("metric", str(cfg.monitor), METRICS)
    for key, (kind, least, most) in _RANGES.items():
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
            yield f"{key}={value} is not allowed. {targets_allowed()}"


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
    defaults = _shipped(f"{command}.yaml")
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
        "data": _shipped("data/_base.yaml"),
        "model": _shipped("model/_base.yaml"),
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
