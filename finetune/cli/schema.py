"""Keys, choices and ranges that a configuration may have."""

from __future__ import annotations

import functools
from typing import Any

from omegaconf import OmegaConf

from finetune.io.paths import CONF

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


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")

METRICS = ("val/acc", "val/loss", "val/f1", "val/auroc", "train/acc", "train/loss")
"""What `monitor` may name: what FineTuner logs."""

CHOICES: dict[str, tuple[Any, ...]] = {
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
    "trainer.precision": ("auto", *PRECISIONS, "16", "32", "64", "bf16", 16, 32, 64),
    "trainer.accelerator": ("auto", "cpu", "cuda", "gpu", "mps", "tpu"),
    "precision": ("auto", *PRECISIONS),
}

FORMATS: dict[str, tuple[Any, ...]] = {
    "predict": ("csv", "jsonl", "parquet"),
    "export": ("onnx", "torch_export", "safetensors", "state_dict"),
}

# key: kind, least, most; None is no bound. A value of null is left to whoever reads it, * is every item of a list.
RANGES: dict[str, tuple[type, float | None, float | None]] = {
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
    "phash_threshold": (int, 0, 16),
}


def shipped_keys(name: str) -> tuple[str, ...]:
    """The keys at the top of one of our own files, `train.yaml` say."""
    return tuple(str(key) for key in shipped(name))


@functools.cache
def shipped(name: str) -> Any:
    """One of our own files, before it is composed."""
    return OmegaConf.load(CONF / name)
