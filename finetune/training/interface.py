"""Say what the helpers of `FineTuner` rely on, so that they need not import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from finetune.checkpoints.metadata import CheckpointMetadata
from finetune.images.transforms import Preprocess
from finetune.metrics.classification import SplitMetrics, TrainingMetrics
from finetune.models.backbone import Backbone
from finetune.models.specs import Family
from finetune.training.schedule import FreezeSchedule
from finetune.training.strategy import Strategy


class TrainableClassifier(Protocol):
    """A LightningModule that adapts a classifier; `FineTuner` is one."""

    model_name: str
    classes: list[str]
    backbone: nn.Module
    _backbone: Backbone
    family: Family
    preprocess: Preprocess
    transform_input: bool
    weights_source: str
    strategy: Strategy
    schedule: FreezeSchedule
    batch_augmentation: nn.Module | None
    train_metrics: TrainingMetrics
    metadata: CheckpointMetadata
    metrics: SplitMetrics
    criterion: Any
    rates: dict[str, float]
    make_optimizer: Callable[[Any], Optimizer] | None
    make_scheduler: Callable[..., Any] | None
    scheduler_interval: str
    monitor: str

    @property
    def hparams(self) -> Any:
        """Return the constructor's arguments, as a checkpoint keeps them."""

    @property
    def device(self) -> torch.device:
        """Return where it computes."""

    def train(self, mode: bool = True) -> Any:
        """Set the modes of the current epoch."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return its tensors by name."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a checkpoint says beside the tensors."""
