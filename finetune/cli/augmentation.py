"""Make the augmentation that a YAML file lists, `data/augment=NAME`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torchvision.transforms import v2

from finetune.cli import instantiate


def make_augmentation(specs: Sequence[Mapping[str, Any]], size: int) -> v2.Transform:
    """Return the transforms of a list as one, for uint8 pixels (3, H, W).

    Args:
        specs: `_target_` and arguments of each, in order; those of RandomApply and its like in its own `transforms`.
        size: of the square images in pixels, filled in where a class needs a `size` and none is given.

    Raises:
        ValueError: a target is not allowed or no torchvision transform, or its arguments are wrong.
    """
    return v2.Compose([_make_transform(spec, size) for spec in specs])


def _make_transform(spec: Mapping[str, Any], size: int) -> v2.Transform:
    values = dict(spec)
    if isinstance(values.get("transforms"), list):
        values["transforms"] = [_make_transform(inner, size) for inner in values["transforms"]]
    make = instantiate.factory(values, v2.Transform)
    own_size = inspect.signature(make.func).parameters.get("size")
    if own_size is not None and values.get("size") is None and ("size" in values or own_size.default is own_size.empty):
        make.keywords["size"] = [size, size]
    try:
        transform: v2.Transform = make()
    except (TypeError, ValueError) as error:
        raise ValueError(f"data.augment: {values['_target_']}: {error}") from error
    return transform
