"""Compare the predictions of an export with those of the model, on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from finetune.data.datamodule import ImageDataModule
from finetune.data.readers import decoded_with
from finetune.exporting import formats
from finetune.exporting.formats import Exported, Runner
from finetune.inference import eval_data, inputs
from finetune.inference.classifier import Classifier
from finetune.runtime.console import echo, field_line, short_path

T = TypeVar("T")

BATCH_SIZE = 8

MIN_AGREEMENT = 0.9
"""Share of equal labels below which a file in 8 bits is rejected."""

MIN_INT8_IMAGES = 16
"""Number of images that 8 bits need: half of them set the ranges, the others are compared."""


class ComparisonImages(NamedTuple):
    """Images on which an export is compared with the model."""

    images: Tensor
    """(N, C, size, size) uint8"""
    labels: Tensor | None
    """Of them, where they are known."""
    description: str
    """Of their origin."""
    decode: Callable[[], Iterable[Tensor]]
    """Decodes them again: pixels (C, H, W) uint8, one image after the other, for not all of them may fit into memory."""


def spread(items: Sequence[T], at_most: int) -> list[T]:
    """Return so many items, evenly spaced; folders are sorted by class, and the first ones would be of one class."""
    count = min(at_most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def comparison_images(model: Classifier, source: str | None, at_most: int) -> ComparisonImages:
    """Return images of a source, or of those that the run held out, evenly spaced; noise if neither can be had.

    Args:
        model: whose transform and held-out images are used.
        source: as `predict` takes it; None for the images that the run held out.
        at_most: so many images.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: no image in it can be read, or none for this model.
    """
    if source is not None:
        model.require_decodable()
        read = partial(inputs.read_input, decoding=model.decoding)
        found = inputs.find_inputs(source)
        names = islice(found.names, at_most) if found.total is None else spread([*found.names], at_most)
        items = [item for batch in inputs.read_inputs(names, model.transform, BATCH_SIZE, read=read) for item in batch]
        readable = {i: item.image for i, item in enumerate(items) if item.image is not None}
        if not readable:
            raise ValueError(f"source={source}: none of {len(items)} images of it can be read.")
        unreadable = f" ({len(items) - len(readable)} cannot be read)" if len(readable) < len(items) else ""
        description = f"{len(readable)} images of {source}{unreadable}"
        files = [items[i].name for i in readable]
        return ComparisonImages(torch.stack([*readable.values()]), None, description, lambda: map(read, files))
    try:
        model.require_decodable()
        split = eval_data.find_eval_data(model.module.metadata.data, model.classes, "val", ImageDataModule()).split
    except (ValueError, FileNotFoundError):
        size, channels = model.module.preprocess.resize, formats.decoded_channels(model.module)
        shape, generator = (BATCH_SIZE, channels, size, size + 1), torch.Generator().manual_seed(0)
        noise = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        description = f"{BATCH_SIZE} images of noise, for the run's own are not at hand: give source=FOLDER"
        return ComparisonImages(torch.stack([*map(model.transform, noise)]), None, description, lambda: noise)
    split = split.take(spread(range(len(split)), at_most))
    images = torch.cat([batch for batch, _ in model.batches(split, BATCH_SIZE)])
    decode = decoded_with(split.load, model.decoding)
    description = f"{len(split)} of the run's val images"
    return ComparisonImages(images, torch.tensor(split.labels), description, lambda: map(decode, range(len(split))))


def probabilities(run: Runner, images: Tensor) -> Tensor:
    """Return probabilities (N, classes), computed in batches of `BATCH_SIZE` and, for the last image, of one."""
    with torch.inference_mode():
        parts = [run(batch) for batch in images[:-1].split(BATCH_SIZE)] if len(images) > 1 else []
        return torch.cat([*parts, run(images[-1:])]).float()


def model_probabilities(model: Classifier, images: Tensor) -> Tensor:
    """Return what the model predicts for the images, at its temperature: probabilities (N, classes)."""
    return probabilities(lambda batch: model.logits(batch, model.temperature).softmax(dim=1), images)


def decoded_probabilities(run: Runner, images: ComparisonImages) -> Tensor:
    """Return probabilities (N, classes) of a graph that resizes, for one decoded image after the other."""
    with torch.inference_mode():
        return torch.cat([run(pixels.permute(1, 2, 0)[None].contiguous()) for pixels in images.decode()]).float()


def compare_probabilities(expected: Tensor, exported: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
    """Return the largest absolute difference of a probability, the share of equal labels, and accuracies.

    Args:
        expected: probabilities (N, classes) of the model.
        exported: probabilities (N, classes) of the export.
        labels: true labels (N,); without them there are no accuracies.
    """
    predicted, model_predicted = exported.argmax(dim=1), expected.argmax(dim=1)
    comparison: dict[str, Any] = {
        "images": len(exported),
        "max_abs_diff": float((expected - exported).abs().max()),
        "agreement": float((predicted == model_predicted).double().mean()),
    }
    if labels is not None:
        comparison["acc"] = float((predicted == labels).double().mean())
        comparison["model_acc"] = float((model_predicted == labels).double().mean())
    return comparison


def describe_comparison(comparison: dict[str, Any]) -> str:
    """Return a comparison as text for the terminal."""
    text = (
        f"largest difference of a probability {comparison['max_abs_diff']:.2g}, "
        f"same label for {comparison['agreement']:.2%}"
    )
    if "acc" in comparison:
        text += f", accuracy {comparison['acc']:.4f} (the model's {comparison['model_acc']:.4f})"
    return text


def require_int8_images(compared: ComparisonImages, at_most: int) -> None:
    """Refuse 8 bits where there are too few images to set their ranges and to compare.

    Raises:
        ValueError: there are fewer than `MIN_INT8_IMAGES`; says how many there are, and why.
    """
    if len(compared.images) >= MIN_INT8_IMAGES:
        return
    needed = f"quantize=int8 takes {MIN_INT8_IMAGES} images or more, half of them to compare on, and there are"
    reason = (
        f"images={at_most} allows no more" if at_most < MIN_INT8_IMAGES else "source=FOLDER with more of them helps"
    )
    raise ValueError(
        f"{needed} {compared.description}" + ("." if "source=FOLDER" in compared.description else f": {reason}.")
    )


def export_int8(exported: Exported, comparison_set: ComparisonImages, expected: Tensor) -> dict[str, Any]:
    """Write the file in 8 bits too, and return how it compares with the model.

    Args:
        exported: the ONNX file.
        comparison_set: images; those at even positions set the ranges, the others are compared.
        expected: probabilities (N, classes) of the model.

    Raises:
        ValueError: the labels differ too often.
    """
    quantized = formats.quantize_int8(exported, comparison_set.images[::2])
    labels = None if comparison_set.labels is None else comparison_set.labels[1::2]
    predicted = probabilities(quantized.run, comparison_set.images[1::2])
    comparison = compare_probabilities(expected[1::2], predicted, labels)
    if comparison["agreement"] < MIN_AGREEMENT:
        quantized.path.unlink()
        raise ValueError(
            f"In 8 bits it gives the same label for {comparison['agreement']:.2%} of {comparison['images']} images, less than "
            f"{MIN_AGREEMENT:.0%}: it is not kept. More images (images=500) may help, or leave quantize out."
        )
    size, size_before = quantized.path.stat().st_size, exported.path.stat().st_size
    echo(field_line("int8", f"on the half of them that set no ranges: {describe_comparison(comparison)}"))
    echo(
        field_line("", f"{short_path(quantized.path)} ({size / 2**20:.1f} MiB, {size / size_before:.0%} of the other)")
    )
    return {"file": quantized.path.name, "bytes": size, **comparison}
