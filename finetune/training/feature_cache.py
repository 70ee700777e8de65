"""Whether a fit can train on kept features, in which epochs, and the features themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from finetune.data.datamodule import ImageDataModule
from finetune.models import partition
from finetune.runtime.console import echo, field_line
from finetune.training import feature_store, schedule
from finetune.training.feature_store import FeatureStore

if TYPE_CHECKING:
    from finetune.training.module import FineTuner


@dataclass(frozen=True)
class CachedSplits:
    """Features of the training and validation images, for the epochs before `until`."""

    train: FeatureStore
    val: FeatureStore
    until: int
    views: int


def choose_split_point(module: FineTuner, trainer: Trainer, first_epoch: int) -> tuple[str, int] | None:
    """Where to cut the network, and the epoch until which what enters there is a constant.

    Of the cuts that hold for most epochs, the latest; None if none holds in the first epoch of this fit.
    """
    end, found = schedule.end_of(trainer.max_epochs), []
    for cut in partition.split_points(module.backbone, module.family):
        if not schedule.names_before(module.backbone, cut):
            continue  # the images themselves
        first = schedule.first_unfreeze_epoch(module.plan, module.backbone, end, cut)
        until = end if first is None else min(first, end)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, ImageDataModule) and not data.augments(0) and data.augments(until - 1):
            until = data.plain_epochs
        if until > first_epoch:
            found.append((cut, until))
    return max(found, key=lambda f: f[1], default=None)


def cache_blocker(module: FineTuner, data: Any, trainer: Any, cut: str, until: int) -> str | None:
    """The reason for which features cannot be kept, or would not be what the run computes."""
    if module.strategy.cache == "never":
        return "strategy.cache=never"
    if not isinstance(data, ImageDataModule):
        return "the images do not come from an ImageDataModule"
    if module.mix is not None:
        return "MixUp and CutMix mix pixels"
    views = module.strategy.views
    if views > 1 and not data.augments(0):
        return f"strategy.views={views} needs an augmentation: data.augment=basic"
    if views == 1 and data.augments(0):
        return f"data.augment={data.augment} changes the pixels every epoch; none, or strategy.views=8, allow it"
    # 1.0 is all batches, 1 is one of them
    limits: list[Any] = [trainer.limit_train_batches, trainer.limit_val_batches]
    if trainer.overfit_batches or any(limit != 1.0 or isinstance(limit, int) for limit in limits):
        return "only some of the batches are used"
    if module.hparams["model"] == "custom" and cut != module.family.head:
        return f"what a network of your own does after {cut} may be more than its modules"
    if any(p.requires_grad for p in _before(module, cut)) and (trainer.world_size > 1 or trainer.gradient_clip_val):
        return "gradients of a group with rate 0 are clipped or shared between processes"
    try:
        schedule.set_modes(module.plan, module.backbone, until - 1, trainer.max_epochs, module.family.feature_boundary)
        varying = partition.first_varying_module(module.backbone, cut, module.family.aux_roots)
    finally:
        module.train()
    return f"{varying} is in training mode" if varying else None


def _before(module: FineTuner, cut: str) -> Iterator[Any]:
    names = schedule.names_before(module.backbone, cut) - module.plan.head
    return (p for n, p in module.backbone.named_parameters() if n in names)


def prepare_caches(module: FineTuner, trainer: Trainer, first_epoch: int) -> str | None:
    """Give the data module features, and kept pixels for the epochs without; lines say what happens.

    Args:
        first_epoch: of this fit; later than 0 in a resumed run.

    Returns:
        The cut at which features enter, or None.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    chosen = choose_split_point(module, trainer, first_epoch)
    # a fit in which everything learns from the start gets no line on features: there is nothing to keep
    cut = _keep_features(module, data, trainer, *chosen) if chosen is not None else None
    if isinstance(data, ImageDataModule):
        first = data.cached.until if data.cached is not None else first_epoch
        said = data.keep_pixels(max(0, schedule.end_of(trainer.max_epochs) - first))
        if said and trainer.is_global_zero:
            echo(field_line("Pixels", said))
    return cut


def _keep_features(module: FineTuner, data: Any, trainer: Trainer, cut: str, until: int) -> str | None:
    reason = cache_blocker(module, data, trainer, cut, until)
    if reason is None:
        try:
            cached = _compute(module, data, trainer, cut, until)
        except (OSError, ValueError, torch.OutOfMemoryError) as error:
            reason = str(error)
    # over several processes: all or none
    if not trainer.strategy.reduce_boolean_decision(reason is None, all=True):
        if trainer.is_global_zero:
            echo(
                field_line(
                    "Features", f"computed anew in every step: {reason or 'another process could not keep them'}"
                )
            )
        return None
    data.cached = cached
    return cut


def _compute(module: FineTuner, data: ImageDataModule, trainer: Trainer, cut: str, until: int) -> CachedSplits:
    views = module.strategy.views
    results = {}
    for split in ("train", "val"):
        results[split] = feature_store.extract_features(
            _extraction_spec(module, data, trainer, cut, split, views), data.cache
        )
    seconds = sum(r.seconds for r in results.values())
    if trainer.is_global_zero:
        size = sum(r.file.nbytes for r in results.values()) / 2**20
        images = f"{views} x {len(data.splits['train'])}" if views > 1 else str(len(data.splits["train"]))
        how = f"computed in {seconds:.1f} s" if seconds else "taken from the cache"
        epochs = (
            "all epochs train on them"
            if until >= schedule.end_of(trainer.max_epochs)
            else f"epochs 1 to {until} train on them"
        )
        echo(
            field_line(
                "Features",
                f"of {images} + {len(data.splits['val'])} images before {cut}, {how}, {size:,.0f} MiB in "
                f"{data.cache.folder}; {epochs}",
            )
        )
    return CachedSplits(results["train"].file, results["val"].file, until, views)


def _extraction_spec(
    module: FineTuner, data: ImageDataModule, trainer: Trainer, cut: str, split: str, views: int
) -> feature_store.ExtractionSpec:
    views = views if split == "train" else 1
    precision = trainer.precision_plugin
    device = module.device

    def ready(images: Tensor) -> Tensor:
        normalized: Tensor = precision.convert_input(module.preprocess.normalize(images.to(device, non_blocking=True)))
        return normalized

    key = {
        "model": module.hparams["model"],
        "weights": partition.weights_digest(module.backbone, cut, module.family.aux_roots),
        "transform_input": bool(module.hparams["transform_input"]),
        "cut": cut,
        "preprocess": [data.final_preprocess.to_dict(), module.preprocess.to_dict()],
        "device": device.type,
        "images": data.fingerprint(split),
        "augmentation": {"views": views, "kind": data.augmentation, "seed": data.seed} if views > 1 else None,
        "precision": str(trainer.precision),
        "dtype": module.strategy.cache_dtype,
        **feature_store.key_versions(),
    }
    return feature_store.ExtractionSpec(
        network=module.backbone,
        cut=cut,
        head=module.family.head,
        key=key,
        what=f"features of {module.hparams['model']} before {cut}, {len(data.splits[split])} {split} images"
        + (f" x {views} views" if views > 1 else ""),
        rows=len(data.splits[split]) * views,
        batches=lambda: map(ready, data.in_order(split, views)),
        probe=lambda: ready(data.first_image(split)),
        context=precision.forward_context,
        dtype=module.strategy.cache_dtype,
    )
