"""Replace the head, the network or the strategy of a module that is built already."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from finetune.models.backbone import Backbone, names_under
from finetune.models.head_layers import head_record
from finetune.runtime.console import echo, field_line
from finetune.training.losses import make_criterion
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
    module.metadata = module.metadata.without_measurements()
    _plan_again(module)


def prepare(module: Any, name: str, value: Any) -> Any:
    """Return what is kept of a value that is set as an attribute of a FineTuner.

    A network that `torch.compile` has wrapped is kept without its wrapper, compiled, so that its names stay; a loss may be
    a function, where a module was one before.

    Raises:
        ValueError: a loss is none.
    """
    if name == "criterion":
        value = make_criterion(value, None, 0.0, len(module.classes))
        module._modules.pop(name, None)
        module.__dict__.pop(name, None)
        return value
    network = value
    if name != "backbone" or not hasattr(network, "_orig_mod"):
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
        module.metadata = module.metadata.without_measurements()
        _plan_again(module)
    if name == "strategy" and schedule is not None:
        module.__dict__["strategy"] = Strategy.load(module.strategy)
        _plan_again(module)


def plan_for_added(module: Any) -> None:
    """Plan again where layers were added to a FineTuner's network or put in place of others; the new ones train as a head.

    Raises:
        ValueError: the strategy does not fit any more.
    """
    names = {name for name, _ in module.backbone.named_parameters()}
    planned = {name for _, own in module.schedule.groups for name in own}
    if names == planned:
        return
    added = sorted(names - planned)
    module._backbone.head_names = [*names_under(module.backbone, module.family.new), *added]
    module._backbone.has_own_head = True
    by_hand, end = module.schedule.frozen_by_hand & names, module.schedule.max_epochs
    _plan_again(module)
    module.schedule.frozen_by_hand, module.schedule.max_epochs = by_hand, end
    if added:
        text = (
            f"{len(added)} parameters were added to the network ({added[0]} and so on): they are trained as the head is"
        )
        echo(field_line("Note", text))


def _plan_again(module: Any) -> None:
    """Make the groups of the strategy for the network as it is now; the mode stays, training or evaluation.

    Raises:
        ValueError: the network is being trained: its optimizer has the parameters of before.
    """
    state = module._trainer.state if module._trainer is not None else None
    if state is not None and state.fn == TrainerFn.FITTING and module._trainer.optimizers and not state.finished:
        raise ValueError(
            "The head, the network and the strategy are set before a fit: its optimizer has the parameters of before."
        )
    module.schedule = FreezeSchedule(module.strategy, module._backbone, module.schedule.aux_weight)
    module.schedule.set_requires_grad(module._epoch)
    module.train(module.training)
    module.hparams["head"] = head_record(module.backbone, module.family.head, module._backbone.has_own_head)
    module.hparams["strategy"] = module.strategy.to_dict()
