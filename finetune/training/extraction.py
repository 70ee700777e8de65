"""Say which features of a split a module, its data and a Trainer make together."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from finetune.models import partition
from finetune.models.libraries import library_versions
from finetune.training import feature_store


def extraction_spec(
    module: Any,
    data: Any,
    trainer: Trainer,
    split_point: str,
    split: str,
    views: int | None = None,
) -> feature_store.ExtractionSpec:
    """Return which features a fit keeps of a split; whoever computes the same finds them in the cache.

    Args:
        module: a `FineTuner` that is about to be fitted.
        data: an `ImageDataModule`.
        trainer: of the fit.
        split_point: where the features enter.
        split: "train" or "val".
        views: augmented versions of each training image; None is as the strategy says.
    """
    training = split == "train"
    views = (views or module.strategy.views) if training else 1
    dtype = module.strategy.cache_dtype if training else "float32"  # evaluation is exact
    enter = partial(to_network, module=module, trainer=trainer)
    key = {
        "model": module.model_name,
        **({"options": module._backbone.options} if module._backbone.options else {}),
        **library_versions(module.model_name),
        "weights": partition.weights_digest(module.backbone, split_point, module.family.aux_roots),
        "transform_input": bool(module.transform_input),
        "split_point": split_point,
        "preprocess": [data.final_preprocess.to_dict(), module.preprocess.to_dict()],
        "device": module.device.type,
        "images": data.fingerprint(split),
        **data.transforms.key(views),
        "augmentation": {"views": views, "kind": data.transforms.name, "seed": data.seed} if views > 1 else None,
        "precision": str(trainer.precision),
        "dtype": dtype,
        "fused": training,
        **feature_store.key_versions(),
    }
    number = f"{len(data.splits[split])} {split} images" + (f" x {views} views" if views > 1 else "")
    return feature_store.ExtractionSpec(
        network=module.backbone,
        split_point=split_point,
        head=module.family.head,
        key=key,
        description=f"features of {module.model_name} before {split_point}, {number}",
        rows=len(data.splits[split]) * views,
        batches=lambda: map(enter, data.iterate_split(split, views)),
        probe=lambda: enter(data.first_image(split, views)),
        context=trainer.precision_plugin.forward_context,
        dtype=dtype,
        fuse=training,
    )


def to_network(images: Tensor, module: Any, trainer: Trainer) -> Tensor:
    """Return images as they enter the network: on its device, normalised, and in the type of the Trainer's precision."""
    images = images.to(module.device, non_blocking=True)
    if images.dtype == torch.uint8:  # a transform of the user's own may have normalised them
        images = module.preprocess.normalize(images)
    converted: Tensor = trainer.precision_plugin.convert_input(images)
    return converted
