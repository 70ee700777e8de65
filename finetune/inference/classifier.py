"""A trained model in use: pictures in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from finetune.images import decode
from finetune.images.transforms import Preprocess
from finetune.runtime import hardware
from finetune.runtime.suggestions import unknown_name
from finetune.training.module import FineTuner

ImageInput = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL picture, pixels (H, W), (H, W, 3) or (H, W, 4) as an array, or (3, H, W) as a tensor, uint8."""

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
        crops = v2.Compose([v2.Resize([p.resize], p.mode), v2.FiveCrop([p.size, p.size])])
        return torch.stack(crops(pixels))


TTA: dict[str, Callable[[Preprocess], Callable[[Tensor], Tensor]]] = {
    "none": Preprocess.eval_transform,
    "flip": _Flip,
    "five_crop": _FiveCrop,
}
"""Test-time augmentation: pixels (3, H, W) to the image (3, size, size), or to views of it (V, 3, size, size) over whose
probabilities the mean is taken."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of a picture."""

    label: str
    """The most probable class."""
    confidence: float
    """Its probability."""
    probabilities: dict[str, float]
    """Of every class, the most probable first."""


class Classifier:
    """A FineTuner in evaluation mode, with the preprocessing that it was trained with.

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

    def __init__(self, module: FineTuner, device: str = "auto", precision: str = "auto", tta: str = "none") -> None:
        """Move a module to where it is used.

        Args:
            module: it is set to evaluation mode.
            device: "cpu", "cuda", "mps", or "auto": what there is.
            precision: one of Lightning's names, or "auto": that of the run where this machine computes it natively,
                else "32-true".
            tta: a name of `TTA`.
        """
        if tta not in TTA:
            raise ValueError(unknown_name("tta", tta, TTA, f"It is one of {', '.join(TTA)}."))
        kind = device.partition(":")[0]
        if hardware.resolve_accelerator(kind) != kind and device != "auto":
            raise ValueError(f"device={device} cannot be used here: torch finds none. device=auto takes what there is.")
        self.device = torch.device(hardware.resolve_accelerator(device) if device == "auto" else device)
        validated = module.about.get("validated", {})
        self.precision = (
            _precision(validated.get("precision", "32-true"), self.device) if precision == "auto" else precision
        )
        if self.precision not in _DTYPES:
            raise ValueError(unknown_name("precision", precision, _DTYPES, f"It is one of {', '.join(_DTYPES)}."))
        mixed, dtype = self.precision.endswith("-mixed"), _DTYPES[self.precision]
        self._autocast = dtype if mixed else None
        self.module = module.to(self.device, torch.float32 if mixed else dtype).eval()
        self.module.evaluate_as(validated)
        self.transform = TTA[tta](module.preprocess)
        """uint8 pixels (3, H, W) to what `logits` takes a batch of."""

    @property
    def classes(self) -> list[str]:
        """In the order of the probabilities."""
        return self.module.classes

    # --- batches that are prepared -----------------------------------------------------------------------------

    def logits(self, batch: Tensor) -> Tensor:
        """A batch of `transform`'s results, (N, 3, size, size) or (N, V, 3, size, size), to logits (N, classes) float32."""
        context: AbstractContextManager[Any] = nullcontext()
        if self._autocast is not None:
            context = torch.autocast(self.device.type, dtype=self._autocast)
        with torch.inference_mode(), context:
            logits: Tensor = self.module(batch.to(self.device))
        return logits.float().cpu()

    def logits_and_features(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """In one pass, also what enters the head, (N, D) float32, see `FineTuner.features`; the mean over views."""
        entered: list[Tensor] = []
        handle = self.module.head.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        try:
            logits = self.logits(batch)
        finally:
            handle.remove()
        features = self.module.pooled(entered[-1]).cpu()  # before it, perhaps, those of the folding
        return logits, features.view(len(batch), -1, features.shape[1]).mean(dim=1)

    # --- pictures ----------------------------------------------------------------------------------------------

    @overload
    def predict(self, pictures: ImageInput) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, pictures: Iterable[ImageInput]) -> list[Prediction]: ...
    def predict(self, pictures: Any) -> Prediction | list[Prediction]:
        """What the model says of a picture, or of each of several.

        Args:
            pictures: one (see `Picture`), or a list of them, or a batch of pixels, (N, H, W, 3) as an array or
                (N, 3, H, W) as a tensor.

        Raises:
            BadImageError: a file cannot be read; names it.
            ValueError: pixels that are not uint8 or of another shape.
        """
        single = _is_one(pictures)
        found = [self._prediction(row) for row in self.probabilities([pictures] if single else pictures)]
        return found[0] if single else found

    def probabilities(self, pictures: Any) -> Tensor:
        """The probabilities (N, classes) of pictures, given as for `predict`."""
        return self._in_batches(pictures, self.logits, len(self.classes)).softmax(dim=1)

    def features(self, pictures: Any) -> Tensor:
        """What enters the head (N, D), of pictures given as for `predict`."""
        return self._in_batches(pictures, lambda batch: self.logits_and_features(batch)[1], 0)

    def _in_batches(self, pictures: Any, what: Callable[[Tensor], Tensor], width: int) -> Tensor:
        every = [pictures] if _is_one(pictures) else list(pictures)
        parts = [
            what(torch.stack([self.transform(to_pixels(p)) for p in every[k : k + BATCH]]))
            for k in range(0, len(every), BATCH)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, width)

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


def _precision(of_the_run: str, device: torch.device) -> str:
    """A precision that is not native here would be ten times slower, or fail."""
    native = {"32-true", hardware.native_precision(device.type)} | ({"64-true"} if device.type != "mps" else set())
    return of_the_run if of_the_run in native else "32-true"


def _is_one(pictures: Any) -> bool:
    if isinstance(pictures, np.ndarray | Tensor):
        return pictures.ndim < 4
    return isinstance(pictures, str | Path | Image.Image | bytes) or not isinstance(pictures, Iterable)


def to_pixels(picture: Any) -> Tensor:
    """A picture as uint8 RGB pixels (3, H, W).

    Raises:
        BadImageError: a file cannot be read.
        ValueError: pixels of another type or shape.
    """
    if isinstance(picture, str | Path):
        return decode.read_pixels(picture)
    if isinstance(picture, Image.Image):
        return decode.to_pixels(ImageOps.exif_transpose(picture))
    if not isinstance(picture, np.ndarray | Tensor):
        raise ValueError(f"A picture is a file, a PIL picture, an array or a tensor, got a {type(picture).__name__}.")
    layout, channels = ("(H, W), (H, W, 3) or (H, W, 4)", -1) if isinstance(picture, np.ndarray) else ("(3, H, W)", 0)
    shape, wide = tuple(picture.shape), isinstance(picture, np.ndarray)
    good = (wide and len(shape) == 2) or (len(shape) == 3 and shape[channels] in ((3, 4) if wide else (1, 3)))
    if str(picture.dtype).removeprefix("torch.") != "uint8" or not good or 0 in shape:
        raise ValueError(
            f"Pixels are uint8 {layout}, got {picture.dtype} {shape}. For values in 0..1: (255 * x).round() as uint8."
        )
    if isinstance(picture, np.ndarray):
        return decode.to_pixels(Image.fromarray(picture))
    return picture.expand(3, -1, -1)


def load(
    path: str | Path, device: str = "auto", precision: str = "auto", tta: str = "none", **changes: Any
) -> Classifier:
    """A checkpoint as an object that classifies; it needs nothing but the file.

    >>> from finetune import FineTuner, load
    >>> FineTuner("squeezenet1_1", classes=["ants", "bees"], weights="none").save("model.ckpt")
    >>> load("model.ckpt").classes
    ['ants', 'bees']

    Args:
        path: `best.ckpt` or `last.ckpt` of a run, or what `FineTuner.save` wrote.
        device: see `Classifier`.
        precision: see `Classifier`.
        tta: see `Classifier`.
        changes: see `FineTuner.load_from_checkpoint`; `model=network` for a network of your own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds code, or is not of ours.
    """
    return Classifier(FineTuner.load_from_checkpoint(path, **changes), device, precision, tta)
