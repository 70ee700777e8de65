"""Replace the head or the network of a module that is built already."""

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


def compiled_in_place(network: Any) -> Any:
    """Return a network that `torch.compile` has wrapped without its wrapper, compiled, so that its names stay."""
    if not hasattr(network, "_orig_mod"):
        return network
    own = network._orig_mod
    own._compiled_call_impl = network.dynamo_ctx(own._call_impl)
    return own
