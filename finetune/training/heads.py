"""Replace the head of a module that is built already."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune.models.backbone import Backbone
from finetune.models.head_layers import head_record
from finetune.training.interface import TrainableClassifier
from finetune.training.schedule import FreezeSchedule


def set_head(module: TrainableClassifier, backbone: Backbone, layers: Any) -> None:
    """Put layers in the place of a module's head, with new groups of its strategy.

    Raises:
        ValueError: they are no module, or do not fit.
    """
    if not isinstance(layers, nn.Module):
        raise ValueError(f"The head must be a module, got {layers!r:.60}.")
    backbone.network = module.backbone
    backbone.insert_head(layers, len(module.classes))
    module.backbone.to(memory_format=torch.channels_last)
    module.schedule = FreezeSchedule(module.strategy, backbone, module.schedule.aux_weight)
    module.hparams["head"] = head_record(module.backbone, module.family.head)
