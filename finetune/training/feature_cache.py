"""Decide whether a fit can train on kept features, in which epochs, and provide them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from finetune.data.datamodule import ImageDataModule
from finetune.models import partition
from finetune.runtime.console import echo, field_line
from finetune.training import feature_store, fold_features
from finetune.training.extraction import extraction_spec
from finetune.training.feature_store import FeatureLoader, FeatureStore
from finetune.training.interface import TrainableClassifier
from finetune.training.param_groups import names_before


@dataclass(frozen=True)
class CachedFeatures:
    """Features of the training and validation images, for the epochs before `until`."""

    train: FeatureStore
    val: FeatureStore
    split_point: str
    network: nn.Module
    until: int
    views: int
    from_cache: bool
    """Whether some of them were there before this run."""
    saved_seconds: float
    """Seconds that computing those took."""

    def record(self) -> dict[str, Any]:
        """Return what `metrics.json` says of them."""
        return {"from_cache": self.from_cache, "saved_seconds": round(self.saved_seconds, 3)}

    def loader(self, split: str, epoch: int, labels: Sequence[int], batches: Any) -> FeatureLoader | None:
        """Return what gives an epoch its features in place of pixels; None where there are none."""
        if epoch >= self.until or split not in ("train", "val"):
            return None
        store, views = (self.train, self.views) if split == "train" else (self.val, 1)
        return FeatureLoader(store, self.split_point, self.network, labels, batches, views)


def prepare_caches(module: TrainableClassifier, trainer: Trainer, first_epoch: int) -> None:
    """Give the data module features, and cached pixels for the epochs without; print what happens.

    Args:
        module: about to be fitted.
        trainer: with the data module.
        first_epoch: of this fit, counted from 0; later than 0 in a resumed run.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    features, reasons = None, list[str]()
    for split_point, until in choose_split_points(module, data, first_epoch):
        features, reason = _features(module, data, trainer, split_point, until)
        reasons += [reason] if reason is not None else []
        if features is not None:
            break
    # where everything is trainable from the start there is nothing to keep, and nothing to say
    if features is None and reasons and trainer.is_global_zero:
        echo(field_line("Features", f"computed again in every step: {reasons[0]}"))
    if isinstance(data, ImageDataModule):
        data.features = features
        if trainer.is_global_zero:
            for note in data.transforms.notes(data.unaugmented_epochs):
                echo(field_line("Note", note))
        pixel_epochs = module.schedule.end - (features.until if features is not None else first_epoch)
        description = data.cache_pixels(max(0, pixel_epochs))
        if description and trainer.is_global_zero:
            echo(field_line("Pixels", description))


def choose_split_points(module: TrainableClassifier, data: Any, first_epoch: int) -> list[tuple[str, int]]:
    """Choose where the network may be split, and for each place the epoch until which what enters there is a constant.

    The first holds for most epochs; the others hold for fewer, should the first turn out to be none. Of split points that
    hold equally long, the latest. Empty if none holds in the first epoch of this fit.
    """
    schedule, latest = module.schedule, dict[int, str]()
    for split_point in partition.split_points(module.backbone, module.family):
        if not names_before(module.backbone, split_point):
            continue  # the images themselves
        first = schedule.first_unfreeze_epoch(split_point)
        until = schedule.end if first is None else min(first, schedule.end)
        if isinstance(data, ImageDataModule) and not data.augments(0) and data.augments(until - 1):
            until = data.unaugmented_epochs
        if until > first_epoch:
            latest.setdefault(until, split_point)
    return [(latest[until], until) for until in sorted(latest, reverse=True)]


def cache_blocker(module: TrainableClassifier, data: Any, trainer: Trainer, split_point: str, until: int) -> str | None:
    """Return the reason why features cannot be kept, or would not be what the run computes; None if they can."""
    if module.strategy.cache == "never":
        return "strategy.cache=never"
    if not isinstance(data, ImageDataModule):
        return "the images do not come from an ImageDataModule"
    if module.batch_augmentation is not None:
        return "MixUp and CutMix mix pixels"
    if (reader := batch_reader(module, data, trainer)) is not None:
        return f"{reader} may read the images of a batch"
    views = module.strategy.views
    if views > 1 and not data.augments(0):
        return f"strategy.views={views} needs an augmentation: data.augment=basic"
    if views == 1 and data.augments(0):
        return f"{data.transforms.augmented_by} changes the pixels every epoch; none, or strategy.views=8, allow it"
    # 1.0 is all batches, 1 is one of them
    options: Any = trainer
    limits = [options.limit_train_batches, *([options.limit_val_batches] if len(data.splits["val"]) else [])]
    if options.overfit_batches or any(limit != 1.0 or isinstance(limit, int) for limit in limits):
        return "only some of the batches are used"
    if module.model_name == "custom" and split_point != module.family.head:
        return f"what a network of your own does after {split_point} may be more than its modules"
    if any(p.requires_grad for p in _before(module, split_point)) and (
        trainer.world_size > 1 or trainer.gradient_clip_val
    ):
        return "gradients of a group with rate 0 are clipped or shared between processes"
    try:
        module.schedule.set_modes(until - 1)
        varying = partition.first_varying_module(module.backbone, split_point, module.family.aux_roots)
    finally:
        module.train()
    return f"{varying} is in training mode" if varying else None


_BATCH_HOOKS = (
    "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "on_train_batch_start",
    "on_train_batch_end", "on_validation_batch_start", "on_validation_batch_end",
)  # fmt: skip
_KNOWN_PACKAGES = ("finetune", "lightning", "pytorch_lightning", "torch")


def batch_reader(module: Any, data: Any, trainer: Any) -> str | None:
    """Return the first overridden hook or foreign callback that is handed batches; None if there is none.

    Callbacks of Lightning and of this package count batches, and do not read them. `training_step` may be overridden:
    `self(images)` takes features too, and any other use of them is an error.
    """
    for owner in (module, data, *trainer.callbacks):
        hooks = (*_BATCH_HOOKS, "forward") if owner is module else _BATCH_HOOKS
        if owner is data:
            hooks = (*hooks, "train_dataloader", "val_dataloader")
        for hook in hooks:
            function = getattr(owner, hook, None)  # of the object: LambdaCallback's are functions that it was given
            if function is not None and str(function.__module__).split(".")[0] not in _KNOWN_PACKAGES:
                return f"{hook} of {type(owner).__name__}"
    return None


def _before(module: TrainableClassifier, split_point: str) -> Iterator[Any]:
    names = names_before(module.backbone, split_point) - module.schedule.head
    return (p for n, p in module.backbone.named_parameters() if n in names)


def _features(
    module: TrainableClassifier, data: Any, trainer: Trainer, split_point: str, until: int
) -> tuple[CachedFeatures | None, str | None]:
    """Compute the features or find them in the cache; None, and the reason, where that cannot be."""
    features = None
    reason = cache_blocker(module, data, trainer, split_point, until)
    if reason is None:
        try:
            features = _extract(module, data, trainer, split_point, until)
        except (OSError, ValueError, torch.OutOfMemoryError) as error:
            reason = str(error)
    # over several processes: all or none
    if not trainer.strategy.reduce_boolean_decision(reason is None, all=True):
        return None, reason or "another process could not keep them"
    return features, None


def _extract(
    module: TrainableClassifier, data: ImageDataModule, trainer: Trainer, split_point: str, until: int
) -> CachedFeatures:
    views = module.strategy.views
    # the views of an image depend on its position in a fold
    whole = fold_features.over_all_folds(data) if data.splitting.folds and views == 1 else data
    parts = [(whole, "train"), *([(data, "val")] if len(data.splits["val"]) else [])]
    extracted = [
        feature_store.extract_features(extraction_spec(module, of, trainer, split_point, split), data.cache)
        for of, split in parts
    ]
    train, val = extracted[0], extracted[-1]  # the same where there is nothing to validate
    if trainer.is_global_zero:
        size = sum(part.store.nbytes for part in extracted) / 2**20
        images = f"{views} x {len(data.splits['train'])}" if views > 1 else str(len(whole.splits["train"]))
        seconds = sum(part.seconds for part in extracted)
        how = f"computed in {seconds:.1f} s" if seconds else "taken from the cache"
        images += " (of all folds)" if whole is not data else ""
        if seconds and not train.seconds:  # of an earlier run with other validation images, or of finetune.rank
            how = f"the first taken from the cache, the others {how}"
        epochs = "all epochs" if until >= module.schedule.end else f"epochs 1 to {until}"
        text = f"of {images} + {len(data.splits['val'])} images before {split_point}, {how}, {size:,.0f} MiB in"
        echo(field_line("Features", f"{text} {data.cache.folder}; {epochs} train on them"))
    store = train.store if whole is data else fold_features.of_fold(train.store, whole, data)
    found = [part.store for part in extracted if not part.seconds]
    saved = sum(part.seconds for part in found)
    return CachedFeatures(store, val.store, split_point, module.backbone, until, views, bool(found), saved)
