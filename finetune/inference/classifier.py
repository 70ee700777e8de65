"""Use a trained model: images in, labels and probabilities out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from finetune.data.loaders import ImageDataset, WorkerDataLoader, in_order, make_loader
from finetune.data.readers import decoded_with
from finetune.data.splits import Split
from finetune.images.decode import MAX_PIXELS, Decoding
from finetune.images.transforms import Preprocess
from finetune.inference.inputs import ImageInput, needs_loader, read_inputs, to_pixels
from finetune.models.network import average_views
from finetune.models.partition import first_leaf
from finetune.runtime import hardware
from finetune.runtime.suggestions import unknown_name
from finetune.training.module import FineTuner

BATCH = 32


# Small classes and not closures: DataLoader workers must be able to unpickle them.
@dataclass(frozen=True)
class _Flip:
    preprocess: Preprocess

    def __call__(self, pixels: Tensor) -> Tensor:
        image = self.preprocess.eval_transform()(pixels)
        return torch.stack([image, image.flip(-1)])


@dataclass(frozen=True)
class _FiveCrop:
    preprocess: Preprocess

    def __call__(self, pixels: Tensor) -> Tensor:
        p = self.preprocess
        crops: Tensor = p.around([p.resized(p.resize), v2.FiveCrop([p.size, p.size]), torch.stack])(pixels)
        return crops


TTA: dict[str, Callable[[Preprocess], Callable[[Tensor], Tensor]]] = {
    "none": Preprocess.eval_transform,
    "flip": _Flip,
    "five_crop": _FiveCrop,
}
"""Test-time augmentation: pixels (3, H, W) to the image (3, size, size), or to views of it (V, 3, size, size), whose
probabilities are averaged, each at the temperature."""

CHECKPOINT = "checkpoint"
"""Word for the temperature that a checkpoint says."""


@dataclass(frozen=True)
class Prediction:
    """The classes that a model predicts for an image."""

    label: str
    """The most probable class."""
    confidence: float
    """Its probability."""
    probabilities: dict[str, float]
    """Probability of every class, the most probable first."""


class Classifier:
    """A FineTuner in evaluation mode, with the preprocessing that it was trained with, and its calibration.

        model = finetune.load("best.ckpt")
        model.predict("photo.jpg").label
        for prediction in model.predict(["a.jpg", "b.jpg"]): ...

    `model.module` is the FineTuner, `model.classes` the class names.

    >>> import numpy as np
    >>> from finetune import FineTuner
    >>> model = Classifier(FineTuner("squeezenet1_1", classes=["ants", "bees"], weights="none"), device="cpu")
    >>> model.predict(np.zeros((80, 60, 3), np.uint8)).label in model.classes
    True
    >>> model.probabilities(np.zeros((5, 80, 60, 3), np.uint8)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        module: FineTuner,
        device: str = "auto",
        precision: str = "auto",
        tta: str = "none",
        max_pixels: int | None = None,
        temperature: float | str = CHECKPOINT,
    ) -> None:
        """Move a module to where it is used.

        Args:
            module: it is set to evaluation mode.
            device: "cpu", "cuda", "mps", or "auto": what there is.
            precision: one of Lightning's names, or "auto": that of the run where this machine computes it natively,
                else "32-true".
            tta: a name of `TTA`.
            max_pixels: larger images are refused, and never smaller ones than the run took; None is
                `decode.MAX_PIXELS`.
            temperature: logits are divided by it before the softmax; "checkpoint" is what the module's metadata say, 1
                where they say nothing. The most probable class stays the same, but for an image whose views disagree.

        Raises:
            ValueError: an argument is none of these.
        """
        if tta not in TTA:
            raise ValueError(unknown_name("tta", tta, TTA, f"It is one of {', '.join(TTA)}."))
        kind = device.partition(":")[0]
        if hardware.resolve_accelerator(kind) != kind and device != "auto":
            raise ValueError(f"device={device} cannot be used here: torch finds none. device=auto takes what there is.")
        self.device = torch.device(hardware.resolve_accelerator(device) if device == "auto" else device)
        trained_with = module.metadata.validation.precision or "32-true"
        self.precision = _usable_precision(trained_with, self.device) if precision == "auto" else precision
        if self.precision not in _DTYPES:
            raise ValueError(unknown_name("precision", precision, _DTYPES, f"It is one of {', '.join(_DTYPES)}."))
        mixed, dtype = self.precision.endswith("-mixed"), _DTYPES[self.precision]
        self._autocast = dtype if mixed else None
        self.module = module.to(self.device, torch.float32 if mixed else dtype).eval()
        self.decoding = Decoding(
            module.preprocess.depth, max(max_pixels or MAX_PIXELS, module.metadata.data.max_pixels or 0)
        )
        self._flips = tta == "flip"
        self.transform = TTA[tta](module.preprocess)
        """uint8 pixels (3, H, W) to what `logits` takes a batch of."""
        self.temperature = _resolve_temperature(module, temperature)
        """Of all probabilities."""
        self.temperature_origin = module.metadata.calibration.fitted_on if temperature == CHECKPOINT else ""
        """Which images it was fitted on, for people; empty where it was given, or where there is none."""

    @property
    def classes(self) -> list[str]:
        """Return the class names in the order of the probabilities."""
        return self.module.classes

    def describe_temperature(self) -> str:
        """Return the temperature of the checkpoint and where it comes from, as the end of a sentence; empty without one."""
        if not self.temperature_origin or self.temperature == 1:
            return ""
        views = ", of each view before they are averaged" if self.most_views > 1 else ""
        text = f"; probabilities at its temperature {self.temperature:.4g}, fitted on {self.temperature_origin}"
        return f"{text}{views}"

    def describe_flip(self) -> str:
        """Return what speaks against averaging over mirrored images, as the end of a sentence; empty where nothing does."""
        if not self._flips or self.module.metadata.data.flip is not False:
            return ""
        return "; tta=flip averages over mirrored images, which its run took for those of other classes (data.flip)"

    @property
    def most_views(self) -> int:
        """Return how many views of an image there are at most: 1 without test-time augmentation."""
        return {3: 1, 4: 5}[self.transform(torch.zeros(3, 8, 8, dtype=torch.uint8)).ndim]

    def require_decodable(self) -> None:
        """Refuse to read files for a model whose images a loader of the user's read.

        Raises:
            ValueError: finetune cannot decode its images; says what to do.
        """
        channels, loader = self.module.preprocess.channels, self.module.metadata.data.loader
        if loader is not None or channels not in (1, 3):
            raise ValueError(needs_loader(channels, loader))

    # --- batches -----------------------------------------------------------------------------------------------

    def batches(
        self,
        split: Split,
        batch_size: int = BATCH,
        num_workers: int | str = "auto",
        positions: Iterable[int] | None = None,
    ) -> WorkerDataLoader:
        """Return a split's images as `logits` takes them, with their labels, in order.

        Args:
            split: the images.
            batch_size: images of a batch.
            num_workers: processes that decode; "auto" looks at the cores and the number of images.
            positions: some of the images; None is all.

        Raises:
            ValueError: see `require_decodable`.
        """
        self.require_decodable()
        chosen = list(range(len(split)) if positions is None else positions)
        if num_workers == "auto":
            num_workers = hardware.default_num_workers(len(chosen), self.device.type == "cpu")
        split = replace(split, load=decoded_with(split.load, self.decoding))
        preprocess = self.module.preprocess
        batch_bytes = batch_size * self.most_views * preprocess.channels * preprocess.size**2
        return make_loader(
            ImageDataset(split, self.transform), in_order(chosen, batch_size), int(num_workers), batch_bytes=batch_bytes
        )

    def logits(self, batch: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute the logits (N, classes) float32 of what `transform` makes: (N, 3, size, size), or V views of each.

        They are divided by `temperature`, which is not that of the probabilities if it is not given; of views, they are the
        logarithm of the mean probability.
        """
        return average_views(self.view_logits(batch), temperature)

    def view_logits(self, batch: Tensor) -> Tensor:
        """Compute the logits (N, V, classes) float32 of each view; V is 1 for what `transform` makes one image of."""
        context: AbstractContextManager[Any] = nullcontext()
        if self._autocast is not None:
            context = torch.autocast(self.device.type, dtype=self._autocast)
        images = batch if batch.ndim == 4 else batch.flatten(0, 1)
        with torch.inference_mode(), context:
            logits: Tensor = self.module(images.to(self.device))
        return logits.float().cpu().view(len(batch), -1, logits.shape[-1])

    def logits_and_features(self, batch: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Compute `logits` and, in the same pass, what enters the head, (N, D) float32; the mean over views."""
        entered: list[Tensor] = []
        handle = first_leaf(self.module.head).register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        try:
            logits = self.logits(batch, temperature)
        finally:
            handle.remove()
        features = self.module.network.pool(entered[0]).cpu()
        return logits, features.view(len(batch), -1, features.shape[1]).mean(dim=1)

    # --- images ------------------------------------------------------------------------------------------------

    @overload
    def predict(self, images: ImageInput) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Iterable[ImageInput]) -> list[Prediction]: ...
    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """Predict the class of an image, or of each of several.

        Args:
            images: one (see `ImageInput`), or a list of them, or a batch of pixels, (N, H, W, 3) as an array or
                (N, 3, H, W) as a tensor.

        Raises:
            BadImageError: a file cannot be read; names it.
            ValueError: pixels that are not uint8 or of another shape.
        """
        predictions = [self._prediction(row) for row in self.probabilities(images)]
        return predictions[0] if _is_one(images) else predictions

    def probabilities(self, images: Any) -> Tensor:
        """Compute the probabilities (N, classes) of images, given as for `predict`; see `temperature`."""
        run = partial(self.logits, temperature=self.temperature)
        return self._in_batches(images, run, len(self.classes)).softmax(dim=1)

    def features(self, images: Any) -> Tensor:
        """Compute what enters the head (N, D), for images given as for `predict`."""
        return self._in_batches(images, lambda batch: self.logits_and_features(batch)[1], 0)

    def _in_batches(self, images: Any, run: Callable[[Tensor], Tensor], width: int) -> Tensor:
        items = [images] if _is_one(images) else images
        channels, loader = self.module.preprocess.channels, self.module.metadata.data.loader
        read = partial(to_pixels, channels=channels, loader=loader, decoding=self.decoding)
        results = [
            run(torch.stack([loaded.image for loaded in batch if loaded.image is not None]))
            for batch in read_inputs(items, self.transform, BATCH, read=read, strict=True)
        ]
        return torch.cat(results) if results else torch.zeros(0, width)

    def _prediction(self, row: Tensor) -> Prediction:
        order = row.argsort(descending=True, stable=True).tolist()
        values = row.tolist()
        probabilities = {self.classes[i]: values[i] for i in order}
        return Prediction(self.classes[order[0]], values[order[0]], probabilities)


_DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
}
"""Lightning's names of precisions."""


def _usable_precision(trained_with: str, device: torch.device) -> str:
    """Return the precision of the run where it is native here; another would be ten times slower, or fail."""
    native = {"32-true", hardware.native_precision(device.type)} | ({"64-true"} if device.type != "mps" else set())
    return trained_with if trained_with in native else "32-true"


def _resolve_temperature(module: FineTuner, given: float | str) -> float:
    if given == CHECKPOINT:
        return module.metadata.calibration.temperature
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise ValueError(f"temperature is a number above 0, or {CHECKPOINT}: what the checkpoint says; got {given!r}.")
    return float(given)


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | Path | Image.Image | bytes) or not isinstance(images, Iterable)


def load(
    path: str | Path,
    device: str = "auto",
    precision: str = "auto",
    tta: str = "none",
    max_pixels: int | None = None,
    temperature: float | str = CHECKPOINT,
    **changes: Any,
) -> Classifier:
    """Load a checkpoint as an object that classifies; it needs nothing but the file.

    >>> from finetune import FineTuner, load
    >>> FineTuner("squeezenet1_1", classes=["ants", "bees"], weights="none").save("model.ckpt")
    >>> load("model.ckpt").classes
    ['ants', 'bees']

    Args:
        path: `best.ckpt` or `last.ckpt` of a run, or what `FineTuner.save` wrote.
        device: see `Classifier`.
        precision: see `Classifier`.
        tta: see `Classifier`.
        max_pixels: see `Classifier`.
        temperature: see `Classifier`; 1 gives the probabilities as the network computes them.
        changes: see `FineTuner.load_from_checkpoint`; `model=network` for a network of your own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds code, or was not written by `finetune`.
    """
    module = FineTuner.load_from_checkpoint(path, **changes)
    return Classifier(module, device, precision, tta, max_pixels, temperature)
