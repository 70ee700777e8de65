"""Solve the head of a module on the features of its training images, before the first epoch."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from finetune.data import grouping
from finetune.data.datamodule import ImageDataModule
from finetune.models import partition
from finetune.runtime.console import echo, field_line
from finetune.runtime.seeding import stratified_folds
from finetune.training import batches, flips, linear_probe
from finetune.training.extraction import extraction_spec
from finetune.training.linear_probe import LinearHead, Objective
from finetune.training.resume import ResumeState

FOLDS = 5

ROWS = 64
"""Images whose features pass what is left of the network at a time; SqueezeNet's are a third of a megabyte each."""

RESIDENT_BYTES = 1 << 30
"""Features of more bytes are kept in a file while the head is solved."""

EMPTY = torch.empty(0, dtype=torch.int64)

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""L2 strengths to choose from: twice as many as a ranking has, since one head is solved and not one for each network."""

DEFAULT_STRENGTH = 0.01
"""L2 strength where there are too few images to choose it by cross-validation."""

CHOICE_ROWS = 20_000
"""Images among which the strength is chosen; more would change the choice hardly, and take their time for each fold."""

MARGIN = 1.5
"""How far beyond the training images a rectifier after the head of a map is kept from cutting anything off."""

TOLERANCE = 2e-3
"""How far probabilities of the network may be from those of the solved head: rounding, and maps cut off here and there."""


@dataclass(frozen=True)
class _SolvedHead:
    """The head that was solved, and what it predicts for images that it was not fitted on."""

    head: LinearHead
    strength: float
    """Of the L2 penalty."""
    logits: Tensor | None
    """(N, classes) float64, of images by the heads of the other folds; None where there are too few images."""
    labels: Tensor
    """(N,) int64, of the same images."""


def solve(module: Any, trainer: Trainer, resume: ResumeState) -> tuple[Tensor, Tensor] | None:
    """Give the head its optimum on the features of the training images where the strategy asks for it, and print how.

    Args:
        module: a `FineTuner`, where the Trainer fits it, before its first step.
        trainer: of the fit; its data module has the features already where they can be kept.
        resume: where the run goes on; one that is resumed has its head.

    Returns:
        Where nothing is trained after it, what it predicts for images that it was not fitted on: logits (N, classes)
        float64 and labels (N,). None otherwise, and where there are too few images. The same in all processes.

    Raises:
        ValueError: the head is no single linear layer, the loss is not cross entropy, or features are equal or not finite.
    """
    only_solved = module.schedule.only_solves_head
    if not module.strategy.solve_head:
        return None
    if not (resume.is_new or only_solved):
        flips.settle(module, trainer, resume.flip, None)
        return None
    layers = _linear_layers(module)
    objective = _objective(module, layers)
    result, error = None, ""
    if trainer.is_global_zero:
        try:
            result = _solve(module, trainer, objective)
        except ValueError as failure:  # told in every process, or the others would wait
            error = str(failure)
    result, error = trainer.strategy.broadcast((result, error))
    if error or result is None:
        raise ValueError(error)
    if resume.is_new:
        _set_weights(layers, result.head)
        _lift_maps(module, trainer, layers, result.head)
    out_of_fold = None if result.logits is None else (result.logits, result.labels)
    if only_solved:
        return out_of_fold
    flips.settle(module, trainer, resume.flip, out_of_fold)
    return None


def _linear_layers(module: Any) -> list[nn.Linear | nn.Conv2d]:
    """Return the last layer of the network, and of several heads whose outputs are averaged each one's.

    Raises:
        ValueError: a head has other parameters.
    """
    layers: list[nn.Linear | nn.Conv2d] = []
    for path in (module.family.head, *module.family.more_heads):
        head = module.backbone.get_submodule(path)
        with_parameters = [layer for layer in partition.leaves(head) if any(True for _ in layer.parameters())]
        is_pointwise = all(getattr(layer, "kernel_size", (1, 1)) == (1, 1) for layer in with_parameters)
        found = [layer for layer in with_parameters if isinstance(layer, nn.Linear | nn.Conv2d) and is_pointwise]
        if len(found) != 1 or len(with_parameters) != 1:
            raise ValueError(
                f"strategy {module.strategy.name} solves a head that is one linear layer; here it is a "
                f"{type(head).__name__}: strategy=feature_extract trains it."
            )
        layers += found
    return layers


def _objective(module: Any, layers: Sequence[nn.Linear | nn.Conv2d]) -> Objective:
    """Return what is minimized: the loss of the run.

    Raises:
        ValueError: that is another one than cross entropy.
    """
    criterion = module.criterion
    if type(criterion) is not nn.CrossEntropyLoss or criterion.ignore_index >= 0 or criterion.reduction != "mean":
        raise ValueError(
            f"strategy {module.strategy.name} solves a head for cross entropy, and the loss is "
            f"{type(criterion).__name__}: strategy=feature_extract trains one for it, strategy.solve_head=false leaves it out."
        )
    return Objective(criterion.weight, criterion.label_smoothing, layers[0].bias is not None)


def _solve(module: Any, trainer: Trainer, objective: Objective) -> _SolvedHead:
    began = time.perf_counter()
    features, labels, folds, notes = _training_features(module, trainer)
    _require_differences(features)
    number = len(module.classes)
    strength, logits, chosen_on = DEFAULT_STRENGTH, None, labels
    if folds is not None:
        rows = _rows_to_choose_on(folds)
        chosen_on, some = labels[rows], [folds[i] for i in rows.tolist()]
        found = linear_probe.cross_validate(features[rows], chosen_on, number, some, STRENGTHS, objective)
        strength, logits = sorted(found.strengths)[len(found.strengths) // 2], found.logits
    head = linear_probe.fit_logistic(features, labels, number, strength, objective=objective)
    seconds = time.perf_counter() - began
    how = "too few images to choose it"
    if logits is not None:
        correct = int((logits.argmax(dim=1) == chosen_on).sum())
        how = f"by cross-validation: {correct} of {len(chosen_on)} correct, {correct / len(chosen_on):.4f}"
        if module.strategy.views > 1:  # of augmented images, each several times: no measure of how sure the head is
            how, logits = f"{how} ({module.strategy.views} augmented views of each image)", None
    text = (
        f"solved on {len(features)} x {features.shape[1]} features in {seconds:.1f} s; L2 strength {strength:g}, {how}"
    )
    echo(field_line("Head", text))
    for note in notes:
        echo(field_line("Note", note))
    return _SolvedHead(head, strength, logits, chosen_on)


def _require_differences(features: Tensor) -> None:
    """Refuse features that say nothing.

    Raises:
        ValueError: they are the same for all images.
    """
    if all(bool((block == features[0]).all()) for block in features.split(linear_probe.BLOCK_ROWS)):
        raise ValueError(
            f"All {len(features)} training images have the same features, so that no head can tell them apart: "
            "look at the weights, and at the images with finetune.check."
        )


def _rows_to_choose_on(folds: Sequence[int]) -> Tensor:
    if len(folds) <= CHOICE_ROWS:
        return torch.arange(len(folds))
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(len(folds), generator=generator)[:CHOICE_ROWS].sort().values


# --- features ------------------------------------------------------------------------------------------------------


def _training_features(module: Any, trainer: Trainer) -> tuple[Tensor, Tensor, list[int] | None, list[str]]:
    """Return what enters the head (N, D), labels (N,), the fold of each row where there are enough images, and notes."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    passes, notes = _passes(module, trainer), list[str]()
    if not isinstance(data, ImageDataModule):
        found = [(inputs, labels) for inputs, _, labels in passes]
        features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, labels, _folds(labels.tolist(), None, notes), notes
    labels, kept = torch.tensor(data.splits["train"].labels), cast(Any, data.features)
    rows = len(labels) if kept is None else len(kept.train)
    features = _gather((inputs for inputs, *_ in passes), rows, data.cache.folder)
    if kept is None and data.augments(0):
        notes.append("the head is solved on the images without augmentation.")
    if kept is None and _takes_a_part(trainer):
        notes.append(
            "the head is solved on all training images: trainer.limit_train_batches and overfit_batches hold for the steps "
            "only. data.per_class=N takes fewer images."
        )
    if data.sampler != "none":
        notes.append(
            f"data.sampler={data.sampler} does not count in the solved head, which is of every image once; "
            "loss.class_weights=auto does."
        )
    views = rows // len(labels)
    folds = _folds(labels.tolist(), data, notes)
    return features, labels.repeat(views), folds if folds is None else folds * views, notes


def _takes_a_part(trainer: Any) -> bool:
    limit = trainer.limit_train_batches
    return bool(trainer.overfit_batches) or limit != 1.0 or isinstance(limit, int)


def _passes(module: Any, trainer: Trainer) -> Generator[tuple[Tensor, Tensor, Tensor]]:
    """Yield what enters the head (N, D), the logits (N, classes) and the labels (N,) of the training images, in batches.

    The labels of an `ImageDataModule`, whose images come in order, are left empty.

    Raises:
        ValueError: several processes have a part of the images each.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ImageDataModule):
        if trainer.world_size > 1:
            raise ValueError(
                f"strategy {module.strategy.name} solves the head on all images, which several processes have with an "
                "ImageDataModule only: strategy.solve_head=false leaves it out."
            )
        trainer.fit_loop.setup_data()
        batches_of: Iterable[Any] = (
            batches.unpack_batch(trainer.strategy.batch_to_device(batch), module.batch_keys)
            for batch in trainer.train_dataloader or ()
        )
    elif data.features is not None:
        kept = cast(Any, data.features)
        store, point = kept.train, kept.split_point
        parts = (range(first, min(first + ROWS, len(store))) for first in range(0, len(store), ROWS))
        place = next(module.backbone.parameters())
        batches_of = (
            (batches.Features.wrap(store.take(part).to(place.device, place.dtype), point, module.backbone), EMPTY)
            for part in parts
        )
    else:
        spec = extraction_spec(module, data, trainer, module.family.feature_boundary, "train", views=1)
        batches_of = ((images, EMPTY) for images in spec.batches())
    entered: list[Tensor] = []
    heads = [module.backbone.get_submodule(path) for path in (module.family.head, *module.family.more_heads)]
    handles = [
        partition.first_leaf(head).register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        for head in heads
    ]
    module.eval()
    try:
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for images, labels in batches_of:
                entered.clear()
                logits = module(images)
                yield (
                    torch.cat([module.network.pool(x) for x in entered], dim=1).cpu(),
                    logits.float().cpu(),
                    labels.cpu(),
                )
    finally:
        for handle in handles:
            handle.remove()
        module.train()


def _gather(parts: Iterable[Tensor], rows: int, folder: Path) -> Tensor:
    """Return rows of features (N, D) in one tensor, in a file that has no name where they are many: memory stays flat."""
    iterator = iter(parts)
    first = next(iterator)
    shape = (rows, first.shape[1])
    if 4 * rows * first.shape[1] <= RESIDENT_BYTES:
        whole = torch.empty(shape)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            whole = torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
    done = 0
    for part in chain([first], iterator):
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


def _folds(labels: list[int], data: ImageDataModule | None, notes: list[str]) -> list[int] | None:
    """Return the fold of each image; None where there are too few, of which a note is added."""
    fewest = min(Counter(labels).values())
    folds = min(FOLDS, fewest)
    if folds >= 3:
        try:
            found = stratified_folds(labels, folds) if data is None else grouping.assign_folds(data, folds, data.seed)
        except ValueError:  # fewer groups than folds
            found = []
        spread = Counter(label for label, _ in set(zip(labels, found, strict=False)))
        if found and min(spread.values()) > 1:
            return found
    notes.append(
        f"a class has {fewest} training image{'s' if fewest > 1 else ''}"
        f"{', or all of them in one group,' if folds >= 3 else ','} too few to choose the L2 strength by "
        f"cross-validation; it is {DEFAULT_STRENGTH:g}."
    )
    return None


# --- weights -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _set_weights(layers: Sequence[nn.Linear | nn.Conv2d], head: LinearHead) -> None:
    """Set the last layer; of several heads, whose outputs are averaged, each gets the features that are its own."""
    bias = head.bias
    if not bool(bias.isfinite().all()):  # a class without an image; infinities would make a loss of it
        bias = torch.where(bias.isfinite(), bias, bias[bias.isfinite()].min() - 20)
    for layer, weight in zip(layers, head.weight.chunk(len(layers), dim=1), strict=True):
        layer.weight.copy_(weight.view_as(layer.weight) * len(layers))
        if layer.bias is not None:
            layer.bias.copy_(bias)


@torch.no_grad()
def _lift_maps(module: Any, trainer: Trainer, layers: Sequence[nn.Linear | nn.Conv2d], head: LinearHead) -> None:
    """Add one number to all biases, so that a rectifier between the head and its average cuts nothing off.

    SqueezeNet's head computes a map, rectifies it and averages it. The same number added to all logits changes no
    probability; with one that is large enough the rectifier passes everything, and the average of a linear map is the
    linear map of the average, for which the head was solved.

    Raises:
        ValueError: what the network does after its head is more than that.
    """
    layer, lowest = layers[0], [0.0]
    if isinstance(layer, nn.Conv2d) and layer.bias is not None:
        handle = layer.register_forward_hook(lambda _, inputs, output: lowest.append(float(output.min())))
        try:
            for _ in _passes(module, trainer):
                pass
        finally:
            handle.remove()
        layer.bias -= MARGIN * min(lowest)
    inputs, logits, _ = next(passes := _passes(module, trainer))
    passes.close()
    wanted = head.logits(inputs).softmax(dim=1)
    if not torch.allclose(logits.double().softmax(dim=1), wanted, rtol=0, atol=TOLERANCE):
        raise ValueError(
            f"{module.model_name} does more after its last layer than a linear head does: strategy=feature_extract trains it."
        )
