"""Rank backbones by how well a linear head on their features does in cross-validation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from finetune.data.datamodule import ImageDataModule
from finetune.metrics.statistics import wilson_interval
from finetune.models import partition
from finetune.models.candidates import Candidate
from finetune.models.fusion import fuse_conv_bn
from finetune.models.network import count_parameters
from finetune.training import feature_store, linear_probe
from finetune.training.extraction import extraction_spec
from finetune.training.feature_store import ExtractionSpec, FeatureStore
from finetune.training.module import FineTuner

ROWS = 64
"""Images whose features pass the modules before the head at a time; SqueezeNet's are a third of a megabyte each."""

SPEED_ROWS, SPEED_PASSES, SPEED_SECONDS = 16, 5, 1.0
"""Images of a batch on a CPU, and after how many passes and seconds the measurement of a speed ends."""


@dataclass(frozen=True)
class RankedBackbone:
    """The result of one backbone; `reason` says why there is none."""

    candidate: Candidate
    reason: str = ""
    weights_source: str = ""
    correct: Any = None
    """Whether each training image is predicted correctly by the head that has not seen it: (N,) bool."""
    strengths: Sequence[float] = ()
    """The L2 strength of each fold."""
    images_per_second: float = 0.0
    parameters: int = 0
    seconds: float = 0.0
    """For building the network, its features (nothing if they were kept) and the heads."""
    is_from_cache: bool = False
    obstacle: str = ""
    """Why its features are not in the cache now; empty if they are."""

    @property
    def n_correct(self) -> int:
        """Return the number of images predicted correctly."""
        return int(np.sum(self.correct))

    @property
    def accuracy(self) -> float:
        """Return the share of images predicted correctly."""
        return self.n_correct / len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the accuracy."""
        return wilson_interval(self.n_correct, len(self.correct))


def failed_backbone(candidate: Candidate, error: Exception) -> RankedBackbone:
    """Return the row of a backbone that failed, with the reason."""
    text = " ".join(str(error).split()).replace("model.weights=", f"{candidate.model}@")  # as this command takes it
    is_ours = isinstance(error, ValueError | OSError) and text
    return RankedBackbone(candidate, reason=text if is_ours else f"{type(error).__name__}: {text}")


def sort_results(results: Sequence[RankedBackbone]) -> list[RankedBackbone]:
    """Return the most accurate first, of those alike the fastest, and those that failed last.

    Raises:
        ValueError: all failed; says why.
    """
    ranked = [result for result in results if not result.reason]
    failed = [result for result in results if result.reason]
    if not ranked:
        reasons = "\n- ".join(f"{result.candidate.model}: {result.reason}" for result in failed)
        raise ValueError(f"No backbone could be ranked:\n- {reasons}")
    return [*sorted(ranked, key=lambda result: (-result.n_correct, -result.images_per_second)), *failed]


def place(module: FineTuner, data: ImageDataModule, trainer: Trainer) -> FineTuner:
    """Bring a module and its data to where and how a Trainer would fit them, without a fit; return the module."""
    data.trainer = trainer
    data.setup("fit")
    module.preprocess = data.adapt_to(module.classes, module.preprocess, module.schedule.unaugmented_epochs())
    converted: Any = trainer.precision_plugin.convert_module(module)
    placed: FineTuner = converted.to(trainer.strategy.root_device)
    return placed


def rank_backbone(
    module: FineTuner, data: ImageDataModule, candidate: Candidate, folds: Sequence[int], began: float
) -> RankedBackbone:
    """Compute or find the features of the training images, and cross-validate a linear head on them.

    The features are those that `strategy=feature_extract` keeps, under the same key.

    Args:
        module: as `place` returns it.
        data: of the same Trainer.
        candidate: what the module was made from.
        folds: of each training image.
        began: when this backbone was begun, by `time.perf_counter`.

    Raises:
        ValueError: features are not finite.
    """
    trainer: Any = data.trainer
    split_point, obstacle = module.family.feature_boundary, ""
    spec = extraction_spec(module, data, trainer, split_point, "train")
    try:
        extraction = feature_store.extract_features(spec, data.cache)
        is_from_cache = extraction.seconds == 0
        features = head_inputs(module, extraction.store, split_point)
    except (OSError, ValueError) as error:  # the disk is full, or the network is more than modules one after another
        is_from_cache, obstacle = False, str(error)
        features = head_inputs_of_images(module, spec)
    labels = torch.tensor(data.splits["train"].labels)
    result = linear_probe.cross_validate(features, labels, len(data.classes), folds)
    seconds = time.perf_counter() - began
    return RankedBackbone(
        candidate,
        weights_source=module.weights_source,
        correct=(result.logits.argmax(dim=1) == labels).numpy(),
        strengths=result.strengths,
        images_per_second=measure_speed(spec),
        parameters=count_parameters(module.backbone),
        seconds=seconds,
        is_from_cache=is_from_cache,
        obstacle=obstacle,
    )


@torch.inference_mode()
def head_inputs(module: FineTuner, store: FeatureStore, split_point: str) -> Tensor:
    """Compute what enters the head in evaluation mode from features, as rows (N, D) float32; maps are averaged."""
    network = module.network
    modules = partition.modules_after(module.backbone, split_point)
    before_head = modules[: modules.index(partition.first_leaf(network.head))]
    parameter = next(module.backbone.parameters())
    module.eval()
    try:
        rows = []
        for first in range(0, len(store), ROWS):
            values = store.take(range(first, min(first + ROWS, len(store))))
            values = partition.forward_from(before_head, values.to(parameter.device, parameter.dtype))
            rows.append(network.pool(values).cpu())
    finally:
        module.train()
    return torch.cat(rows)


@torch.inference_mode()
def head_inputs_of_images(module: FineTuner, spec: ExtractionSpec) -> Tensor:
    """Compute what enters the head in evaluation mode from the images themselves, as `head_inputs` returns it."""
    network = module.network
    module.eval()
    try:
        with spec.context():
            return torch.cat([network.head_inputs(images).cpu() for images in spec.batches()])
    finally:
        module.train()


@torch.inference_mode()
def measure_speed(spec: ExtractionSpec) -> float:
    """Measure how many images a second the network computes features of, decoding apart: the best of a few passes.

    The same measurement for each backbone, whether its features were kept or not.
    """
    images = next(iter(spec.batches()))
    if images.device.type == "cpu":
        images = images[:SPEED_ROWS]
    network = fuse_conv_bn(spec.network, spec.split_point, images[:4]) if spec.fuse else spec.network
    best, spent, passes = float("inf"), 0.0, 0
    with spec.context():
        partition.forward_to(network, spec.split_point, images).cpu()  # the first pass prepares the others
        while passes < 2 or (passes < SPEED_PASSES and spent < SPEED_SECONDS):
            began = time.perf_counter()
            partition.forward_to(network, spec.split_point, images).cpu()
            seconds = time.perf_counter() - began
            best, spent, passes = min(best, seconds), spent + seconds, passes + 1
    return len(images) / best
