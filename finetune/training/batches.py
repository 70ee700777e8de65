"""Take batches apart: tuples and mappings of images and labels, and features that stand in for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.items import IMAGE_KEYS, LABEL_KEYS, only_key
from finetune.images.transforms import Preprocess
from finetune.runtime.console import echo, field_line
from finetune.runtime.suggestions import unknown_name

LARGEST = 20
"""No usual mean and deviation make a larger value of a pixel."""

_PASSED_ON = frozenset(
    ("bfloat16", "clone", "contiguous", "cpu", "cuda", "detach", "double", "float", "half", "pin_memory", "to")
)
_ASKED = frozenset(
    ("__len__", "__repr__", "device", "dim", "dtype", "element_size", "is_contiguous", "is_cuda", "is_floating_point",
     "is_meta", "is_mps", "is_pinned", "is_sparse", "layout", "ndim", "numel", "record_stream", "requires_grad", "shape",
     "size", "stride", "grad_fn", "is_leaf", "data_ptr", "itemsize", "nbytes", "names", "grad")
)  # fmt: skip


_INSTEAD = (
    "which holds features of the frozen trunk in their place. module(batch[0]) takes either; where images are needed, set "
    'module.strategy.cache = "never" before the fit (strategy.cache=never).'
)


class Features(Tensor):
    """What enters the split point of a network with a frozen trunk, in a batch in place of its images.

    `FineTuner.forward` computes logits from it. It can be moved, copied and asked for its size, and rows can be taken;
    anything else would treat it as images, and is refused.
    """

    split_point: str
    """Path of the module that it enters."""
    network: nn.Module
    """Whose trunk computed it."""

    @classmethod
    def wrap(cls, values: Tensor, split_point: str, network: nn.Module) -> Features:
        """Return features (N, ...) of a network as a batch holds them."""
        features = values.as_subclass(cls)
        features.split_point, features.network = split_point, network
        return features

    def values_for(self, network: nn.Module) -> Tensor:
        """Return them as a plain tensor, for the modules of a network from the split point on.

        Raises:
            ValueError: they are of another network.
        """
        if network is not self.network:
            raise ValueError(f"Another module was called with the images of a batch, {_INSTEAD}")
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse what would take them for images.

        Raises:
            ValueError: they are used as images.
        """
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = func.__self__.__name__
        takes_rows = name == "__getitem__" and not isinstance(args[1], tuple)
        if not (takes_rows or name in _PASSED_ON or name in _ASKED):
            raise ValueError(f"{name} was called on the images of a batch, {_INSTEAD}")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return cls.wrap(result, args[0].split_point, args[0].network) if takes_rows or name in _PASSED_ON else result


def unpack_batch(batch: Any, keys: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Return the images and the labels of a batch.

    Args:
        batch: a tuple or list of images and labels, or a mapping.
        keys: of images and labels in a mapping; None takes the usual ones.

    Raises:
        ValueError: it holds neither; says what it holds.
    """
    if isinstance(batch, Mapping):
        if keys is not None and (isinstance(keys, str) or len(keys) != 2):
            raise ValueError(f"batch_keys names two keys, of images and of labels, got {keys!r}.")
        image_key, label_key = keys or (only_key(batch, IMAGE_KEYS), only_key(batch, LABEL_KEYS))
        for key in (image_key, label_key):
            if key not in batch:
                raise ValueError(unknown_name("key of a batch", key, [str(k) for k in batch]))
        return batch[image_key], batch[label_key]
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise ValueError(
        f"A batch is images and labels, or a mapping of them, got a {type(batch).__name__}{size}. Override training_step "
        "and validation_step for others."
    )


def images_of(batch: Any, keys: Sequence[str] | None = None) -> Tensor:
    """Return the images of a batch that may have no labels."""
    if isinstance(batch, Mapping):
        images: Tensor = batch[keys[0] if keys else only_key(batch, IMAGE_KEYS)]
        return images
    if isinstance(batch, tuple | list):
        return batch[0]
    return batch


def note_scale(images: Tensor, preprocess: Preprocess, is_first: bool) -> None:
    """Say where the floats of the first batch of a run look like pixels that were not normalised."""
    if not is_first or not images.is_floating_point():
        return
    low, high = (float(value) for value in images.aminmax())
    if high > LARGEST or (low >= 0 and high <= 1 and any(preprocess.mean)):
        text = f"the floats of the first batch lie between {low:.3g} and {high:.3g}, as pixels do, and are taken as normalised"
        echo(field_line("Note", f"{text}; give uint8 pixels, or normalise them as module.preprocess says."))


def loader_name(split: str, index: int, trainer: Any) -> str:
    """Return the name of a loader's metrics: the split's for the first, with the loader's key or number for others."""
    if index == 0:
        return split
    loaders = getattr(trainer, f"{split}_dataloaders")
    name = str(list(loaders)[index] if isinstance(loaders, Mapping) else index)
    return f"{split}/{name.replace('.', '_')}"


def batch_size(batch: Any) -> int:
    """Return the number of images in a batch; 0 where it cannot be told."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    first = (
        next((part for part in batch if isinstance(part, Tensor) and part.ndim), None) if batch is not None else None
    )
    return 0 if first is None else len(first)
