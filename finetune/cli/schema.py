"""Keys, choices and ranges that a configuration may have.

Importing this does not import torch. What a torch-free class defines is taken from it; the tables of classes whose module
imports torch stand here once more, and `tests/cli/test_schema.py` holds them to their classes and to the comments in the YAML files.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from omegaconf import OmegaConf

from finetune.io.paths import CONF
from finetune.training.strategy import CACHE_DTYPES, CACHE_MODES, DECAYS, FROZEN_NORMS, ParamGroup, Strategy

STRATEGY_FIELDS = tuple(field.name for field in dataclasses.fields(Strategy))

GROUP_FIELDS = tuple(field.name for field in dataclasses.fields(ParamGroup))

PREPROCESS_FIELDS = ("size", "resize", "mean", "std", "interpolation", "fit", "depth")

TRAINER_FIELDS = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "fast_dev_run", "max_epochs", "min_epochs", "max_steps",
    "min_steps", "max_time", "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
    "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "enable_checkpointing",
    "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark",
    "inference_mode", "profiler", "detect_anomaly", "barebones", "sync_batchnorm", "reload_dataloaders_every_n_epochs",
    "enable_autolog_hparams", "model_registry",
)  # fmt: skip
"""Arguments of Lightning's Trainer, without those that a command sets itself."""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")

METRICS = ("val/acc", "val/loss", "val/f1", "val/auroc", "train/acc", "train/loss")
"""Metrics that `monitor` may name; FineTuner logs them."""

# key: values that it may have; null is always allowed
CHOICES: dict[str, tuple[Any, ...]] = {
    "model.library": ("torchvision", "timm"),
    "model.head_init": ("default", "xavier_uniform", "xavier_normal", "zero"),
    "model.preprocess.interpolation": ("nearest", "bilinear", "bicubic"),
    "model.preprocess.fit": ("crop", "squash", "pad"),
    "data.augment": ("auto", "none", "light", "basic", "trivial", "rand", "augmix"),
    "data.layout": ("auto", "classes", "splits", "inside_out"),
    "data.sampler": ("none", "sqrt", "balanced"),
    "data.resize": ("crop", "squash", "pad"),
    "data.on_bad_file": ("skip", "error"),
    "data.cache_images": ("auto", "ram", "disk", "off"),
    "strategy.cache": CACHE_MODES,
    "strategy.cache_dtype": CACHE_DTYPES,
    "strategy.frozen_norm": FROZEN_NORMS,
    "strategy.decay": DECAYS,
    "loss.class_weights": ("none", "auto"),
    "scheduler.interval": ("auto", "step", "epoch"),
    "trainer.compile": ("auto", True, False),
    "sweep.sampler": ("tpe", "gp", "cmaes", "nsgaii", "random"),
    "sweep.pruner": ("none", "median", "percentile", "halving", "hyperband"),
    "data.flip": ("auto", True, False),
    "sweep.retry": (True, False),
    "split": ("val", "test"),
    "quantize": ("int8",),
    "resize": ("own", "shared"),
    "embeddings": (True, False),
    "report": (True, False),
    "eval": ("holdout", "kfold"),
    "tta": ("none", "flip", "five_crop"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "trainer.precision": ("auto", *PRECISIONS, "16", "32", "64", "bf16", 16, 32, 64),
    "trainer.accelerator": ("auto", "cpu", "cuda", "gpu", "mps", "tpu"),
    "precision": ("auto", *PRECISIONS),
}

COLUMN_PARTS = ("path", "label", "split", "group")
"""Keys of `data.columns`."""

# command: values of its key `format`
FORMATS: dict[str, tuple[Any, ...]] = {
    "predict": ("csv", "jsonl", "parquet"),
    "export": ("onnx", "torch_export", "safetensors", "state_dict"),
}

# key: type, minimum, maximum; None is no bound. Null is always allowed, * is every item of a list
RANGES: dict[str, tuple[type, float | None, float | None]] = {
    "seed": (int, 0, 2**32 - 1),
    "model.in_channels": (int, 1, None),
    "data.batch_size": (int, 1, None),
    "data.val_fraction": (float, 0.001, 0.9),
    "data.per_class": (int, 1, None),
    "data.folds": (int, 2, None),
    "data.fold": (int, 0, None),
    "data.max_pixels": (int, 1, None),
    "data.image_size": (int, 1, 4096),
    "data.random_erasing": (float, 0, 1),
    "data.split_seed": (int, 0, None),
    "optimizer.weight_decay": (float, 0, None),
    "optimizer.momentum": (float, 0, 1),
    "scheduler.warmup": (float, 0, None),
    "loss.label_smoothing": (float, 0, 1),
    "loss.aux": (float, 0, None),
    "loss.gamma": (float, 0, None),
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
    "strategy.groups.*.weight_decay": (float, 0, None),
    "sweep.n_trials": (int, 1, None),
    "sweep.seed": (int, 0, None),
    "sweep.n_jobs": (int, 1, None),
    "folds": (int, 3, 20),
    "top_k": (int, 1, None),
    "images": (int, 1, None),
    "tolerance": (float, 0, None),
    "min_confidence": (float, 0, 1),
    "target_precision": (float, 0, 1),
    "phash_threshold": (int, 0, 16),
}


def conf_keys(name: str) -> tuple[str, ...]:
    """Return the top-level keys of a file below `conf/`, of `train.yaml` for example."""
    return tuple(str(key) for key in load_conf(name))


@functools.cache
def load_conf(name: str) -> Any:
    """Load a file below `conf/`, before it is composed."""
    return OmegaConf.load(CONF / name)


def loss_keys(target: str) -> tuple[str, ...]:
    """Return the keys that a loss of ours takes; none for a class that only its own import could tell of."""
    files = [f"loss/{path.name}" for path in sorted((CONF / "loss").glob("[!_]*.yaml"))]
    own = next((conf_keys(name) for name in files if load_conf(name).get("_target_") == target), ())
    return (*conf_keys("loss/_base.yaml"), *own) if own else ()
