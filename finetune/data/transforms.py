"""Choose the transforms of a run's images: the built-in ones, or the user's own, whose results are checked."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from finetune.data import identity
from finetune.images.transforms import AUGMENTATIONS, Preprocess
from finetune.runtime import seeding
from finetune.runtime.suggestions import unknown_name

Transform = Callable[[Tensor], Tensor]
AUGMENT = ("auto", *AUGMENTATIONS)
FLIP = (True, False, "auto")
REPETITIONS = 8
"""How often a transform for evaluation is tried: one that mirrors half of the time is found but once in 128 times."""


# Small classes and not closures: worker processes must be able to unpickle them.
@dataclass(frozen=True)
class OwnTransform:
    """A transform of the user's own: its result is checked, and random numbers of Python and numpy are seeded too."""

    argument: str
    """Name of the argument that it was given as."""
    transform: Transform
    preprocess: Preprocess
    """Says the size and the channels of the images that it must return."""
    is_random: bool

    def __call__(self, pixels: Tensor) -> Tensor:
        """Transform pixels (C, H, W) to an image (C, size, size), uint8 or normalised floats.

        Floats in 0..1, which a loader may give, are normalised after the transform; floats that it makes of uint8
        pixels are taken as normalised. For a network of one channel, RGB becomes grey before.

        Raises:
            ValueError: the transform returns something else.
        """
        if pixels.is_floating_point():
            normalised: Tensor = self.preprocess.around([self._transform])(pixels)
            return normalised
        return self._transform(self.preprocess.around([])(pixels))

    def _transform(self, pixels: Tensor) -> Tensor:
        own = pixels.clone()  # which may be changed in place: the pixels themselves may be kept for the next epoch
        # torch's generator has been seeded by the epoch and the image
        seed = seeding.seed_python(torch.default_generator.initial_seed()) if self.is_random else nullcontext()
        try:
            with seed:
                image = self.transform(own)
        # what it raises is up to the transform
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            raise ValueError(
                f"{describe_own(self.argument, self.transform)} raises {type(error).__name__} for {own.dtype} "
                f"{tuple(own.shape)}: {text}"
            ) from error
        expected = (self.preprocess.channels, self.preprocess.size, self.preprocess.size)
        if (
            isinstance(image, Tensor)
            and (image.dtype == torch.uint8 or image.is_floating_point())
            and tuple(image.shape) == expected
        ):
            return image
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__qualname__
        raise ValueError(
            f"{describe_own(self.argument, self.transform)} returned {got}; it must return a tensor {expected}, "
            "uint8 or normalised floats. Another size is given as image_size=."
        )


@dataclass(frozen=True)
class Erasing:
    """Erase a random rectangle of the images of another transform, with a probability."""

    transform: Transform
    probability: float
    colour: tuple[float, ...]
    """Of the rectangle, each channel in 0..1."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Transform and erase. Source: Zhong et al., "Random Erasing Data Augmentation", 2020."""
        image = self.transform(pixels)
        # normalised floats have a mean of 0
        value = [round(255 * c) for c in self.colour] if image.dtype == torch.uint8 else 0
        erased: Tensor = v2.RandomErasing(self.probability, value=value)(image)
        return erased


def describe_own(argument: str, transform: Any) -> str:
    """Return an argument and its transform as words of a message."""
    return f"{argument}={identity.describe_briefly(transform)}"


@dataclass(frozen=True)
class ImageTransforms:
    """Which transforms the images of a run get; see `ImageDataModule`."""

    augment: str = "auto"
    random_erasing: float = 0.0
    train: Transform | None = None
    evaluation: Transform | None = None
    flip: bool | str = "auto"
    """Whether half of the augmented images are mirrored; "auto" is as `found_flip` says, yes where that is None."""
    found_flip: bool | None = None
    """Whether a solved head takes mirrored images for images of the same class; None where none was asked."""

    def __post_init__(self) -> None:
        if self.flip not in FLIP:
            raise ValueError(f"data.flip must be true, false or auto, got {self.flip}.")
        if self.flip != "auto" and self.train is not None:
            raise ValueError(
                f"data.flip={str(self.flip).lower()} is for the augmentations by name, and "
                f"{describe_own('train_transform', self.train)} is one of your own, which mirrors or does not."
            )
        if self.flip is True and self.augment == "none":
            raise ValueError("data.flip=true changes nothing with data.augment=none; give data.augment=basic.")
        if self.augment not in AUGMENT:
            hint = "A YAML file of your own is data/augment=NAME, a transform in Python train_transform=."
            raise ValueError(unknown_name("augmentation", str(self.augment), AUGMENT, hint))
        for argument, transform in self._own():
            if isinstance(transform, type):
                raise ValueError(
                    f"{argument} takes a transform, and {transform.__name__} is a class: give {transform.__name__}(...)."
                )
            if not callable(transform):
                raise ValueError(f"{argument} must be a function of an image's pixels, got {transform!r}.")
        if self.train is not None and self.augment != "auto":
            raise ValueError(
                f"augment={self.augment} and {describe_own('train_transform', self.train)} are both given; leave one out."
            )
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"data.random_erasing is a probability, from 0 to 1, got {self.random_erasing}.")
        if self.random_erasing and self.augment == "none":
            raise ValueError(
                f"data.random_erasing={self.random_erasing} changes nothing with data.augment=none; give data.augment=basic."
            )

    def _own(self) -> list[tuple[str, Transform]]:
        given = (("train_transform", self.train), ("eval_transform", self.evaluation))
        return [(argument, transform) for argument, transform in given if transform is not None]

    @property
    def name(self) -> str:
        """Return the augmentation of the epochs that have one, as a name."""
        return "own" if self.train is not None else "basic" if self.augment == "auto" else self.augment

    @property
    def augmented_by(self) -> str:
        """Return what augments, as a user has given it."""
        return f"data.augment={self.augment}" if self.train is None else describe_own("train_transform", self.train)

    @property
    def has_own(self) -> bool:
        """Return whether a transform of the user's own is among them."""
        return self.train is not None or self.evaluation is not None

    @property
    def known_flip(self) -> bool | None:
        """Return whether mirrored images are of the same class, as the user or a solved head has said; None where no one has."""
        return self.found_flip if self.flip == "auto" else bool(self.flip)

    def first_augmented_epoch(self, unaugmented_epochs: int) -> int | None:
        """Return the first epoch, counted from 0, with augmentation; None if there is none.

        Args:
            unaugmented_epochs: the first epochs, which have none with augment="auto" or "light".
        """
        if self.name == "none":
            return None
        return unaugmented_epochs if self.augment in ("auto", "light") and self.train is None else 0

    def for_evaluation(self, preprocess: Preprocess) -> Transform:
        """Return the transform of images that are evaluated, or trained on without augmentation."""
        if self.evaluation is None:
            return preprocess.eval_transform()
        return OwnTransform("eval_transform", self.evaluation, preprocess, is_random=False)

    def for_training(self, preprocess: Preprocess) -> Transform | None:
        """Return the random transform of the augmented epochs; None if there are none."""
        if self.name == "none":
            return None
        transform: Transform
        if self.train is None:
            transform = preprocess.train_transform(self.name, self.known_flip is not False)
        else:
            transform = OwnTransform("train_transform", self.train, preprocess, is_random=True)
        return Erasing(transform, self.random_erasing, preprocess.mean) if self.random_erasing else transform

    def key(self, views: int) -> dict[str, Any]:
        """Return what the built-in preprocessing does not say of the images, for the keys of kept features.

        Args:
            views: augmented versions of each image; 1 is the plain image.

        Raises:
            ValueError: a transform cannot be identified.
        """
        key: dict[str, Any] = {}
        for argument, transform in self._own():
            if argument == "train_transform" and views == 1:
                continue
            try:
                key[argument] = identity.describe(transform)
            except ValueError as error:
                text = f"{describe_own(argument, transform)} cannot be told from another one ({error})"
                raise ValueError(f"{text}; torchvision's v2 transforms can") from error
        if views > 1:
            key |= {"random_erasing": self.random_erasing} if self.random_erasing else {}
            key |= {"flip": False} if self.known_flip is False else {}
        return key

    def notes(self, unaugmented_epochs: int) -> Iterator[str]:
        """Yield sentences on what a user might not expect."""
        if self.evaluation is not None:
            text = f"not {describe_own('eval_transform', self.evaluation)}"
            yield f"evaluate, predict and export use the checkpoint's preprocessing, {text}"
        first = self.first_augmented_epoch(unaugmented_epochs)
        if self.random_erasing and first:
            yield (
                f"data.random_erasing is for epochs with augmentation: data.augment={self.augment} has none while the trunk is "
                "frozen, data.augment=basic has it in all"
            )

    def require_repeatable(self, plain: Transform, pixels: Tensor) -> None:
        """Refuse a random transform for evaluation.

        Args:
            plain: what `for_evaluation` returned.
            pixels: of an image, to which it is applied `REPETITIONS` times.

        Raises:
            ValueError: the results differ; names the transform.
        """
        with torch.random.fork_rng(devices=[]):
            first, *others = (plain(pixels) for _ in range(REPETITIONS))
        if not all(torch.equal(first, other) for other in others):
            raise ValueError(
                f"{describe_own('eval_transform', self.evaluation)} gives other pixels each time: an evaluation could not be "
                "repeated. Give a random transform as train_transform=."
            )

    def require_picklable(self) -> None:
        """Refuse transforms that cannot be sent to worker processes, where these are not forked.

        Raises:
            ValueError: names the transform.
        """
        if (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork":
            return
        for argument, transform in self._own():
            try:
                ForkingPickler.dumps(transform)
            # what pickling raises is up to the object
            except Exception as error:
                raise ValueError(
                    f"{describe_own(argument, transform)} cannot be sent to worker processes: give a function of a module "
                    "in place of a lambda or a function within one, or num_workers=0."
                ) from error


def to_pixels(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Return images (N, C, H, W) as uint8 pixels, for pictures; normalised floats are turned back."""
    if images.dtype == torch.uint8:
        return images
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
