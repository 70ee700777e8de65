"""Transform pixels to the tensor that a network expects, the same in training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
FITS = ("crop", "squash", "pad")
"""How an image becomes square: the middle of it, all of it with both sides scaled, or all of it and the mean colour
beside it."""

MIN_AREA = {"crop": 0.08, "squash": 0.5, "pad": 0.5}
"""Smallest share of an image that a random crop keeps: torchvision's own, and half of an image that is seen whole in an
evaluation, for what it is known by may be anywhere."""

MAX_SIZE = 4096
"""Largest side in pixels: the preprocessing that a file asks for must not fill the memory."""


@dataclass(frozen=True)
class Preprocess:
    """Describe the preprocessing of a set of weights, in plain values that a checkpoint can hold."""

    size: int = 224
    """Side of the square image that enters the network, in pixels."""
    resize: int = 256
    """Length of the shorter side before the centre crop, in pixels."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per-channel mean subtracted, for pixels in 0..1; as many as the images have channels."""
    std: tuple[float, ...] = IMAGENET_STD
    """Per-channel standard deviation divided by."""
    interpolation: str = "bilinear"
    """`nearest`, `bilinear` or `bicubic`."""
    fit: str = "crop"
    """How an image becomes square; one of `FITS`."""
    depth: tuple[float, float] | None = None
    """The counts of grey of more than 8 bits that become black and white; None is all of 16
    bits without a sign, see `depth.default_range`."""

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"mean": self.mean, "std": self.std}
        channels = next((len(v) for v in given.values() if not isinstance(v, int | float)), 3)
        for name, value in given.items():
            values = (float(value),) * channels if isinstance(value, int | float) else tuple(float(v) for v in value)
            if len(values) != channels or not values:
                raise ValueError(
                    f"preprocess.mean and preprocess.std take one number or one for each channel, got {given}."
                )
            if name == "std" and min(values) <= 0:
                raise ValueError(f"preprocess.std takes numbers above 0, got {value}.")
            object.__setattr__(self, name, values)
        if not 1 <= self.size <= self.resize <= MAX_SIZE:
            raise ValueError(
                f"preprocess needs 1 <= size <= resize <= {MAX_SIZE}, got size={self.size} and resize={self.resize}."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(unknown_name("interpolation", self.interpolation, INTERPOLATIONS))
        if self.fit not in FITS:
            raise ValueError(unknown_name("preprocess.fit", self.fit, FITS))
        if self.depth is not None:
            low, high = (float(value) for value in self.depth)
            if not low < high:
                raise ValueError(f"preprocess.depth takes two counts, black and white, got {list(self.depth)}.")
            object.__setattr__(self, "depth", (low, high))

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
        numbers = {k: v for k, v in changes.items() if k in ("mean", "std") and isinstance(v, int | float)}
        changes |= {name: (float(value),) * self.channels for name, value in numbers.items()}
        return replace(self, **changes)

    @property
    def channels(self) -> int:
        """Return the number of channels of the images that enter the network."""
        return len(self.mean)

    def with_channels(self, channels: int) -> Preprocess:
        """Return the preprocessing of images with so many channels: for one the mean over channels, else repeated."""
        if channels == self.channels:
            return self
        mean, std = ([sum(v) / len(v)] if channels == 1 else v for v in (self.mean, self.std))
        return replace(
            self,
            mean=tuple(mean[i % len(mean)] for i in range(channels)),
            std=tuple(std[i % len(std)] for i in range(channels)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, with lists instead of tuples."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def mode(self) -> InterpolationMode:
        """Return the interpolation as torchvision's enum."""
        return InterpolationMode(self.interpolation)

    def eval_transform(self) -> v2.Transform:
        """Return a transform of pixels (C, H, W), see `around`, to (C, size, size), as `fit` says.

        For "crop" the shorter side is resized to `resize`, and the centre is cut out.
        """
        if self.fit == "crop":
            return self.around([self.resized(self.resize), v2.CenterCrop([self.size, self.size])])
        return self.around([self.resized(self.size)])

    def resized(self, side: int) -> nn.Module:
        """Return what makes all of an image square with this side; for "crop" only its shorter side is so long."""
        if self.fit == "pad":
            return Pad(side, self.mode, self.mean)
        return v2.Resize([side] if self.fit == "crop" else [side, side], self.mode)

    def describe_fit(self) -> str:
        """Return what `eval_transform` does to the shape of an image, in words."""
        how, size = f"({self.interpolation}, antialiased)", f"{self.size} x {self.size}"
        if self.fit == "squash":
            return f"both sides resized to {size} {how}"
        if self.fit == "pad":
            colour = ", ".join(str(round(255 * value)) for value in self.mean)
            return f"longer side resized to {self.size} {how}, centred in {size} of the colour ({colour})"
        return f"shorter side resized to {self.resize} {how}, centre {size}"

    def train_transform(self, augment: str, flip: bool = True) -> v2.Transform:
        """Return a random transform of pixels (C, H, W), see `around`, to (C, size, size).

        Args:
            augment: a name of `AUGMENTATIONS`.
            flip: whether half of the images are mirrored.

        Raises:
            ValueError: `augment` is not one of `AUGMENTATIONS`, or changes colours that the images do not have.
        """
        if augment not in AUGMENTATIONS:
            raise ValueError(unknown_name("augmentation", augment, AUGMENTATIONS))
        if augment == "none":
            return self.eval_transform()
        if augment not in ("none", "light", "basic") and self.channels not in (1, 3):
            raise ValueError(
                f"data.augment={augment} changes the colours of images with one or three channels, and these have "
                f"{self.channels}: take light, basic or none."
            )
        steps = AUGMENTATIONS[augment](self)
        return self.around([step for step in steps if flip or not isinstance(step, v2.RandomHorizontalFlip)])

    def around(self, steps: Sequence[Callable[[Any], Any]]) -> v2.Transform:
        """Return transforms of an image, with what the network needs before and after them.

        The image is pixels (3 or C, H, W), uint8, or float32 in 0..1. For a network of one channel, uint8 RGB becomes
        grey before. Floats are normalised after; uint8 pixels stay, for `normalize`.
        """
        return v2.Compose([*([_Grey()] if self.channels == 1 else []), *steps, _NormalizeFloats(self.mean, self.std)])

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize uint8 images (N, C, H, W) to float32 in channels_last, on the device that they are on.

        This comes last and for a whole batch: bytes are a quarter of the data to move, and one multiply-add over rows of
        pixels is 2 to 5 times faster than `v2.Normalize` image by image. Floats are taken as normalised.

        Raises:
            ValueError: the images have another number of channels.
        """
        if images.dtype != torch.uint8:
            return images
        n, channels, height, width = images.shape
        require_channels(channels, self.channels)
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=images.device).repeat(width)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=images.device)
        rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels)
        floats = torch.addcmul(shift.repeat(width), rows.to(torch.float32), scale)
        return floats.view(n, height, width, channels).permute(0, 3, 1, 2)


def require_channels(given: int, channels: int) -> None:
    """Refuse images of another number of channels than the network's.

    Raises:
        ValueError: the numbers differ.
    """
    if given != channels:
        raise ValueError(
            f"The images have {given} channel{'s' if given > 1 else ''}, and the network takes {channels} (in_channels). Files are decoded to 3, or "
            "to 1 for a network of one; for other numbers give ImageDataModule(loader=...), or pixels."
        )


class _Grey(nn.Module):
    """Turn uint8 RGB pixels (3, H, W) into luminance (1, H, W): ITU-R 601-2 in integers, as Pillow converts to "L".

    Grey pixels, with three equal channels, keep their values exactly.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8 or len(pixels) != 3:
            return pixels
        red, green, blue = pixels.to(torch.int32)
        return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8).unsqueeze(0)


class _NormalizeFloats(nn.Module):
    """Normalise float images (..., C, H, W) in 0..1; uint8 ones are normalised later, in batches."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = list(mean), list(std)

    def forward(self, image: Any) -> Any:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            return image
        require_channels(image.shape[-3], len(self.mean))
        return v2.functional.normalize(image, self.mean, self.std)


class Pad(nn.Module):
    """Resize an image (C, H, W) into a square, and fill what is left beside it with a colour."""

    def __init__(self, side: int, mode: InterpolationMode, colour: Sequence[float]) -> None:
        """Name the square.

        Args:
            side: in pixels.
            mode: of the interpolation.
            colour: of each channel, in 0..1.
        """
        super().__init__()
        self.side, self.mode, self.colour = side, mode, list(colour)

    def forward(self, image: Tensor) -> Tensor:
        """Return the square (C, side, side); where an odd number is left, the larger part is right or below."""
        height, width = image.shape[-2:]
        scale = self.side / max(height, width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        small = v2.functional.resize(image, size, interpolation=self.mode, antialias=True)
        require_channels(image.shape[-3], len(self.colour))
        colour = torch.tensor(self.colour)
        if not image.is_floating_point():
            colour = (255 * colour).round()
        square = colour.to(image.dtype).view(-1, 1, 1).repeat(1, self.side, self.side)
        top, left = (self.side - size[0]) // 2, (self.side - size[1]) // 2
        square[:, top : top + size[0], left : left + size[1]] = small
        return square


class _Crop(v2.RandomResizedCrop):
    """Crop as RandomResizedCrop, a third faster: resizing has a fast path for pixels whose channels are side by side."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        top, left, height, width = (params[k] for k in ("top", "left", "height", "width"))
        crop = inpt[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return v2.functional.resize(crop, list(self.size), interpolation=self.interpolation, antialias=True)


class _SquashedCrop(_Crop):
    """Crop as from the image squashed into a square: the shape of the crop is relative to that of the image."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a crop of the square, and scale it to the sides of the image."""
        height, width = flat_inputs[0].shape[-2:]
        side = max(height, width)
        drawn = super().make_params([torch.empty(1, side, side, device="meta")])
        rows, columns = height / side, width / side
        top, left = round(drawn["top"] * rows), round(drawn["left"] * columns)
        return {
            "top": min(top, height - 1),
            "left": min(left, width - 1),
            "height": max(1, min(round(drawn["height"] * rows), height - top)),
            "width": max(1, min(round(drawn["width"] * columns), width - left)),
        }


LIGHT_AREA = 0.5
"""Share of an image that a crop of "light" has at least. Crops as for ImageNet take more epochs than a fine-tuning has."""


def _basic(p: Preprocess, least_area: float = 0.0) -> list[nn.Module]:
    crop = _SquashedCrop if p.fit == "squash" else _Crop
    cropped = crop([p.size, p.size], scale=(max(MIN_AREA[p.fit], least_area), 1.0), interpolation=p.mode)
    padded = [p.resized(p.resize)] if p.fit == "pad" else []
    return [*padded, cropped, v2.RandomHorizontalFlip()]


AUGMENTATIONS: dict[str, Callable[[Preprocess], list[nn.Module]]] = {
    "none": lambda p: [],
    "light": lambda p: _basic(p, LIGHT_AREA),
    "basic": _basic,
    "trivial": lambda p: [*_basic(p), v2.TrivialAugmentWide(interpolation=p.mode)],
    "rand": lambda p: [*_basic(p), v2.RandAugment(interpolation=p.mode)],
    "augmix": lambda p: [*_basic(p), v2.AugMix(interpolation=p.mode)],
}
"""Random transforms of uint8 pixels, by name."""
