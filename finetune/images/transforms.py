"""Transform pixels to the tensor that a network expects, the same in training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from finetune.runtime.suggestions import unknown_name


def batch_augmentation(num_classes: int, mixup: float, cutmix: float) -> nn.Module | None:
    """Return MixUp, CutMix, or a random choice of both for each batch; None if both are 0.

    Args:
        num_classes: of the labels, which become probabilities (N, classes).
        mixup: alpha of the Beta distribution of the mixing ratio, 0 for none. Source: Zhang et al., "mixup: Beyond
            Empirical Risk Minimization", 2018.
        cutmix: the same for the area that is replaced. Source: Yun et al., "CutMix: Regularization Strategy to Train
            Strong Classifiers with Localizable Features", 2019.
    """
    choices: list[Any] = []
    if mixup > 0:
        choices.append(v2.MixUp(alpha=float(mixup), num_classes=num_classes))
    if cutmix > 0:
        choices.append(v2.CutMix(alpha=float(cutmix), num_classes=num_classes))
    if not choices:
        return None
    return choices[0] if len(choices) == 1 else v2.RandomChoice(choices)


IMAGENET_MEAN = (0.485, 0.456, 0.406)

IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
MAX_SIZE = 4096
"""Largest side in pixels: the preprocessing that a file asks for must not fill the memory."""


@dataclass(frozen=True)
class Preprocess:
    """Describe the preprocessing of a set of weights, in plain values that a checkpoint can hold."""

    size: int = 224
    """Side of the square image that enters the network, in pixels."""
    resize: int = 256
    """Length of the shorter side before the centre crop, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per-channel mean subtracted, for pixels in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per-channel standard deviation divided by."""
    interpolation: str = "bilinear"
    """`nearest`, `bilinear` or `bicubic`."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            triple = (float(value),) * 3 if isinstance(value, int | float) else tuple(float(v) for v in value)
            if len(triple) != 3 or (name == "std" and min(triple) <= 0):
                raise ValueError(
                    f"preprocess.{name} takes one number or three{' above 0' if name == 'std' else ''}, got {value}."
                )
            object.__setattr__(self, name, triple)
        if not 1 <= self.size <= self.resize <= MAX_SIZE:
            raise ValueError(
                f"preprocess needs 1 <= size <= resize <= {MAX_SIZE}, got size={self.size} and resize={self.resize}."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(unknown_name("interpolation", self.interpolation, INTERPOLATIONS))

    @classmethod
    def from_transforms(cls, transforms: Any) -> Preprocess:
        """Return the preprocessing of a torchvision `ImageClassification` preset, as from `weights.transforms()`."""
        return cls(
            size=int(transforms.crop_size[0]),
            resize=int(transforms.resize_size[0]),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        )

    def updated(self, changes: Mapping[str, Any] | None) -> Preprocess:
        """Return a copy with some fields changed; a new `size` scales `resize` with it unless that is given too.

        Raises:
            ValueError: a field is unknown or its value is out of range.
        """
        changes = {k: v for k, v in (changes or {}).items() if v is not None}
        known = [f.name for f in fields(self)]
        for key in changes:
            if key not in known:
                raise ValueError(unknown_name("preprocess field", key, known))
        if "size" in changes and "resize" not in changes:
            changes["resize"] = round(self.resize * changes["size"] / self.size)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, with lists instead of tuples."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def mode(self) -> InterpolationMode:
        """Return the interpolation as torchvision's enum."""
        return InterpolationMode(self.interpolation)

    def eval_transform(self) -> v2.Transform:
        """Return a transform of uint8 RGB pixels (3, H, W) to (3, size, size): resize, then crop the centre."""
        return v2.Compose([v2.Resize([self.resize], self.mode), v2.CenterCrop([self.size, self.size])])

    def train_transform(self, augment: str) -> v2.Transform:
        """Return a random transform of uint8 RGB pixels (3, H, W) to (3, size, size).

        Args:
            augment: a name of `AUGMENTATIONS`.

        Raises:
            ValueError: `augment` is not one of `AUGMENTATIONS`.
        """
        if augment not in AUGMENTATIONS:
            raise ValueError(unknown_name("augmentation", augment, AUGMENTATIONS))
        if augment == "none":
            return self.eval_transform()
        return v2.Compose(AUGMENTATIONS[augment](self))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 images (N, 3, H, W) to float32 in channels_last, on the device that they are on.

        This comes last and for a whole batch: bytes are a quarter of the data to move, and one multiply-add over rows of
        pixels is 2 to 5 times faster than `v2.Normalize` image by image.
        """
        n, _, height, width = images.shape
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=images.device).repeat(width)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=images.device)
        rows = images.permute(0, 2, 3, 1).reshape(n, height, width * 3)
        floats = torch.addcmul(shift.repeat(width), rows.to(torch.float32), scale)
        return floats.view(n, height, width, 3).permute(0, 3, 1, 2)


class _Crop(v2.RandomResizedCrop):
    """Crop as RandomResizedCrop, a third faster: resizing has a fast path for pixels whose channels are side by side."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        top, left, height, width = (params[k] for k in ("top", "left", "height", "width"))
        crop = inpt[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return v2.functional.resize(crop, list(self.size), interpolation=self.interpolation, antialias=True)


def _basic(p: Preprocess) -> list[v2.Transform]:
    return [_Crop([p.size, p.size], interpolation=p.mode), v2.RandomHorizontalFlip()]


AUGMENTATIONS: dict[str, Callable[[Preprocess], list[v2.Transform]]] = {
    "none": lambda p: [],
    "basic": _basic,
    "trivial": lambda p: [*_basic(p), v2.TrivialAugmentWide(interpolation=p.mode)],
    "rand": lambda p: [*_basic(p), v2.RandAugment(interpolation=p.mode)],
    "augmix": lambda p: [*_basic(p), v2.AugMix(interpolation=p.mode)],
}
"""Random transforms of uint8 pixels, by name."""
