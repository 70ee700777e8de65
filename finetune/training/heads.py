"""Replace the head, the network or the strategy of a module that is built already."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune.models.backbone import Backbone, names_under
from finetune.models.head_layers import head_record
from finetune.training.schedule import FreezeSchedule
from finetune.training.strategy import Strategy


def set_head(module: Any, layers: Any) -> None:
    """Put layers in the place of a FineTuner's head, with new groups of its strategy.

    Raises:
        ValueError: they are no module, or do not fit.
    """
    if not isinstance(layers, nn.Module):
        raise ValueError(f"The head must be a module, got {layers!r:.60}.")
    backbone: Backbone = module._backbone
    backbone.network = module.backbone
    backbone.insert_head(layers, len(module.classes))
    module.backbone.to(memory_format=torch.channels_last)
    _plan_again(module)


def compiled_in_place(network: Any) -> Any:
    """Return a network that `torch.compile` has wrapped without its wrapper, compiled, so that its names stay."""
    if not hasattr(network, "_orig_mod"):
        return network
    own = network._orig_mod
    own._compiled_call_impl = network.dynamo_ctx(own._call_impl)
    return own


def follow(module: Any, name: str) -> None:
    """Plan again where another network or strategy has been put in the place of a FineTuner's.

    Args:
        module: a FineTuner, which may be under construction.
        name: of the attribute that was set.

    Raises:
        ValueError: the network has not the head of the one before, or the strategy is none or does not fit.
    """
    schedule = module.__dict__.get("schedule")
    if name == "backbone" and schedule.network is not module.backbone:
        try:
            module.backbone.get_submodule(module.family.head)
        except AttributeError as error:
            raise ValueError(
                f"The new backbone has no head {module.family.head!r}: make a FineTuner of it, FineTuner(network, head=...)."
            ) from error
        module._backbone.network, module._backbone.has_own_head = module.backbone, True
        module._backbone.head_names = names_under(module.backbone, module.family.new)
        _plan_again(module)
    if name == "strategy" and schedule is not None:
        module.__dict__["strategy"] = Strategy.load(module.strategy)
        _plan_again(module)


def _plan_again(module: Any) -> None:
    """Make the groups of the strategy for the network as it is now; the mode stays, training or evaluation."""
    module.schedule = FreezeSchedule(module.strategy, module._backbone, module.schedule.aux_weight)
    module.schedule.set_requires_grad(module._epoch)
    module.train(module.training)
    module.hparams["head"] = head_record(module.backbone, module.family.head, module._backbone.has_own_head)
    module.hparams["strategy"] = module.strategy.to_dict()
