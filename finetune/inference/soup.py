"""Average the weights of several runs as long as that helps: a greedy soup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.checkpoints.format import Checkpoint, read_checkpoint
from finetune.checkpoints.metadata import CalibrationRecord
from finetune.data.datamodule import ImageDataModule
from finetune.inference.classifier import BATCH, Classifier, load
from finetune.inference.eval_data import EvalDataset, find_eval_data
from finetune.inference.evaluation import EvaluationResult, evaluate
from finetune.training.calibrating import calibrate


@dataclass(frozen=True)
class Soup:
    """A model whose weights are the mean of those of several runs."""

    model: Classifier
    ingredients: list[Path]
    """Checkpoints whose weights it is the mean of, the best first."""
    acc: float
    """Validation accuracy of the mean; too good by what choosing on the same images brings, as that of a best epoch is."""
    single_acc: list[float]
    """Validation accuracy of each checkpoint that was given, in the order in which they were given."""


def greedy_soup(
    checkpoints: Sequence[str | Path], path: str | Path, device: str = "auto", data: ImageDataModule | None = None
) -> Soup:
    """Average the weights of runs on the same images, each as long as the validation accuracy does not fall, and save them.

    The checkpoints are tried from the best to the worst. What is tried is what would be saved: running statistics of
    BatchNorm are averaged with the weights.

    Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", 2022, recipe 1 (greedy soup).

    Args:
        checkpoints: of runs from the same pretrained weights that held out the same images; those of a sweep, say.
        path: of the checkpoint to write; it loads as any other.
        device: where it is evaluated, see `Classifier`.
        data: where the validation images are now; None is where they were.

    Raises:
        FileNotFoundError: a checkpoint or a validation image is not there.
        ValueError: there are fewer than two checkpoints, or they are of other models or other images.
    """
    paths = [Path(checkpoint) for checkpoint in checkpoints]
    if len(paths) < 2:
        raise ValueError(f"A soup is made of two checkpoints or more, got {len(paths)}.")
    _require_same_task(paths)
    first = read_checkpoint(paths[0])
    images = find_eval_data(first.metadata.data, first.model.classes, "val", data or ImageDataModule())
    if not images.is_holdout:
        raise ValueError(
            f"A soup is chosen on the images that its runs held out, and those are not found{_where(data)}: other images would "
            "choose, and those that were trained on among them."
        )
    single = [_evaluate(load(p, device, temperature=1), images).values["acc"] for p in paths]
    order = sorted(range(len(paths)), key=lambda i: -single[i])
    model = load(paths[order[0]], device, temperature=1)
    total, ingredients, best = _weights(paths[order[0]]), [paths[order[0]]], single[order[0]]
    for i in order[1:]:
        tried = {name: value + total[name] for name, value in _weights(paths[i]).items()}
        _put(model, tried, len(ingredients) + 1)
        if (acc := _evaluate(model, images).values["acc"]) >= best:
            total, best = tried, acc
            ingredients.append(paths[i])
    _put(model, total, len(ingredients))
    result = _evaluate(model, images)
    values = result.values
    _describe(model, values, calibrate(result.logits, torch.tensor(images.split.labels)))
    model.module.save(path)
    return Soup(model, ingredients, values["acc"], single)


def _where(data: ImageDataModule | None) -> str:
    return "" if data is None or data.root is None else f" at {data.root}"


def _evaluate(model: Classifier, images: EvalDataset) -> EvaluationResult:
    return evaluate(model, images)


def _weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors that are averaged, in 64 bits; counts of batches are none."""
    state = read_checkpoint(path).state_dict
    return {name: value.double() for name, value in state.items() if value.is_floating_point()}


def _put(model: Classifier, total: dict[str, Tensor], count: int) -> None:
    """Give a model the mean of `count` sets of weights."""
    own = model.module.state_dict()
    with torch.no_grad():
        for name, value in total.items():
            own[name].copy_(value / count)


def _describe(model: Classifier, values: dict[str, Any], calibration: CalibrationRecord) -> None:
    """Let the checkpoint say how it was validated and calibrated: by this evaluation, in no epoch."""
    validation = replace(
        model.module.metadata.validation, epoch=None, step=None, precision=model.precision, device=model.device.type,
        processes=1, batch_size=model.module.metadata.validation.batch_size or BATCH,
        results={name: float(values[name]) for name in ("acc", "loss", "f1")},
    )  # fmt: skip
    model.module.metadata = replace(model.module.metadata, validation=validation, calibration=calibration)


def _require_same_task(paths: Sequence[Path]) -> None:
    """Refuse checkpoints whose weights do not mean the same, or whose runs held out other images."""
    first = read_checkpoint(paths[0])
    for path in paths[1:]:
        other = read_checkpoint(path)
        pairs = _facts(first), _facts(other)
        different = [name for name, value in pairs[0].items() if value != pairs[1][name]]
        if different:
            raise ValueError(
                f"{paths[0]} and {path} cannot be averaged: they differ in {', '.join(different)}. A soup is of runs of one "
                "model on the same images, from the same pretrained weights."
            )


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    model, metadata = checkpoint.model, checkpoint.metadata
    return {
        "model": [model.model, model.model_options, model.in_channels],
        "classes": model.classes,
        "head": model.head,
        "preprocessing": model.preprocess,
        "pretrained weights": metadata.weights_source,
        "images": metadata.data.digest,
        "tensors": {name: tuple(value.shape) for name, value in checkpoint.state_dict.items()},
    }
