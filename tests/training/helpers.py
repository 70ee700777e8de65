"""Make modules and record what they train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.cli.groups import group_options
from finetune.models.backbone import wrap_module
from finetune.training.schedule import FreezeSchedule
from finetune.training.strategy import ParamGroup, Strategy


def snapshot(module: FineTuner) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.backbone.state_dict().items()}


def changed_tensors(before: dict[str, Tensor], module: FineTuner) -> set[str]:
    return {k for k, v in module.backbone.state_dict().items() if not torch.equal(before[k], v)}


SHIPPED = group_options("strategy")


HEAD = ["fc.weight", "fc.bias"]


def schedule_of(
    network: nn.Module, *groups: dict[str, Any], boundary: str = "drop", max_epochs: int | None = 10, **options: Any
) -> FreezeSchedule:
    backbone = wrap_module(network, "fc", boundary)
    backbone.head_names = HEAD
    schedule = FreezeSchedule(Strategy([ParamGroup(**g) for g in groups], **options), backbone, aux_weight=0)
    schedule.max_epochs = max_epochs
    return schedule
