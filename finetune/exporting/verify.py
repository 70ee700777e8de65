"""Whether an export says what the model says, on real pictures."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.data.datamodule import ImageDataModule
from finetune.exporting import formats
from finetune.exporting.formats import Exported, Runner
from finetune.inference import eval_data, inputs
from finetune.inference.classifier import Classifier
from finetune.runtime.console import echo, field_line

BATCH = 8

LEAST_AGREEMENT = 0.9
"""Share of equal labels below which 8 bits do not hold up."""

FEWEST = 16
"""Pictures for 8 bits: half of them set the ranges, the others are compared."""


class ComparisonImages(NamedTuple):
    """Images (N, 3, size, size) uint8, their labels where they are known, and where they are from."""

    images: Tensor
    labels: Tensor | None
    what: str


def comparison_images(model: Classifier, source: str | None, at_most: int) -> ComparisonImages:
    """The pictures of a source, or those that the run held out, evenly picked; noise if neither can be had.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: no picture in it can be read.
    """
    if source is not None:
        loaded = inputs.read_inputs(inputs.find_inputs(source).names, model.transform, 2 * BATCH)
        every = list(islice(loaded, at_most))
        good = [item.image for item in every if item.image is not None]
        if not good:
            raise ValueError(f"source={source}: none of its first {len(every)} pictures can be read.")
        bad = f" ({len(every) - len(good)} cannot be read)" if len(good) < len(every) else ""
        return ComparisonImages(torch.stack(good), None, f"{len(good)} pictures of {source}{bad}")
    try:
        split = eval_data.find_eval_data(model.module.about, model.classes, "val", ImageDataModule()).split
    except (ValueError, FileNotFoundError):
        size = model.module.preprocess.size
        noise = torch.randint(
            256, (BATCH, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        return ComparisonImages(
            noise, None, f"{BATCH} images of noise, for the run's own are not at hand: give source=FOLDER"
        )
    step = max(1, len(split) // at_most)
    split = split.take(range(0, len(split), step)[:at_most])
    images = torch.stack([model.transform(split.load(i)) for i in range(len(split))])
    return ComparisonImages(images, torch.tensor(split.labels), f"{len(split)} of the run's val images")


def probabilities(run: Runner, images: Tensor) -> Tensor:
    """Probabilities (N, classes), in batches of `BATCH` and, for the last image, of one."""
    with torch.inference_mode():
        parts = [run(batch) for batch in images[:-1].split(BATCH)] if len(images) > 1 else []
        return torch.cat([*parts, run(images[-1:])]).float()


def compare_probabilities(expected: Tensor, found: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
    """Largest difference between two probabilities, share of equal labels, and accuracy where labels are known."""
    said, wanted = found.argmax(dim=1), expected.argmax(dim=1)
    result: dict[str, Any] = {
        "images": len(found),
        "max_dp": float((expected - found).abs().max()),
        "agreement": float((said == wanted).double().mean()),
    }
    if labels is not None:
        result["acc"] = float((said == labels).double().mean())
        result["acc_of_the_model"] = float((wanted == labels).double().mean())
    return result


def describe_comparison(found: dict[str, Any]) -> str:
    """A comparison for the terminal."""
    text = f"largest difference of a probability {found['max_dp']:.2g}, same label for {found['agreement']:.2%}"
    if "acc" in found:
        text += f", accuracy {found['acc']:.4f} (the model's {found['acc_of_the_model']:.4f})"
    return text


def export_int8(exported: Exported, pictures: ComparisonImages, expected: Tensor) -> dict[str, Any]:
    """Write the file in 8 bits too; every other picture sets its ranges, and it is compared on those between.

    Raises:
        ValueError: the labels differ too often.
    """
    small = formats.quantize_int8(exported, pictures.images[::2])
    labels = None if pictures.labels is None else pictures.labels[1::2]
    found = compare_probabilities(expected[1::2], probabilities(small.run, pictures.images[1::2]), labels)
    if found["agreement"] < LEAST_AGREEMENT:
        small.path.unlink()
        raise ValueError(
            f"In 8 bits it gives the same label for {found['agreement']:.2%} of {found['images']} pictures, less than "
            f"{LEAST_AGREEMENT:.0%}: it is not kept. More pictures (images=500) may help, or leave quantize out."
        )
    size, was = small.path.stat().st_size, exported.path.stat().st_size
    echo(field_line("int8", f"on the half of them that set no ranges: {describe_comparison(found)}"))
    echo(field_line("", f"{small.path} ({size / 2**20:.1f} MiB, {size / was:.0%} of the other)"))
    return {"file": small.path.name, "bytes": size, **found}
