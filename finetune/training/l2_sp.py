"""Decay pretrained parameters towards their pretrained values: L2-SP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from finetune.runtime.console import echo, field_line


class L2SP(Callback):
    """Adds the gradient of `alpha/2 * ||w - w0||^2` over the trunk, and of `beta/2 * ||w||^2` over the new layers.

    `w0` are the weights before the first step. A checkpoint keeps them, so that a resumed run decays towards the same.
    The gradients are added once a step, to the mean over all processes and before clipping; `train/loss` is without them.

    Source: Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", 2018.
    """

    def __init__(self, alpha: float = 0.01, beta: float = 0.0) -> None:
        """Set the strengths.

        Args:
            alpha: of the pretrained parameters.
            beta: of the new layers, which have nothing to return to but zero.

        Raises:
            ValueError: one is negative.
        """
        if not (alpha >= 0 and beta >= 0):
            raise ValueError(f"L2SP: alpha and beta must be 0 or more, got alpha={alpha} and beta={beta}.")
        self.alpha, self.beta = float(alpha), float(beta)
        self.reference: dict[str, Tensor] = {}
        """The weights before the first step, by their names in the network."""
        self._restored: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the weights before the first step."""
        return {"reference": dict(self.reference)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the weights before the first step of the run that is resumed."""
        self._restored = dict(state_dict["reference"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights before the first step, or take those of the run that is resumed.

        Raises:
            ValueError: the module is no FineTuner, the run that is resumed kept none, or the optimizer undoes the
                scaling of 16-bit gradients itself.
        """
        module = _require_classifier(pl_module)
        _require_unscaled_gradients(trainer)
        trunk = {
            name: parameter.detach()
            for group, names in module.schedule.groups
            for name in names
            if group.start is not None and name not in module.schedule.head
            for parameter in [module.backbone.get_parameter(name)]
        }
        restored, self._restored = self._restored, None
        if restored is None and trainer.ckpt_path is not None:
            raise ValueError(
                "L2SP: the run to resume did not keep its first weights, for it was trained without. Leave "
                "+callbacks=l2_sp out, or start a new run from its weights."
            )
        self.reference = _reference(trunk, restored)
        if trainer.is_global_zero:
            _print_notes(module, trainer, self.alpha)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Add the decay to the gradients, which are the mean over all processes and not scaled any more."""
        module: Any = pl_module
        for name, parameter in module.backbone.named_parameters():
            if parameter.grad is None:
                continue
            if name in module.schedule.head:
                if self.beta:
                    parameter.grad.add_(parameter, alpha=self.beta)
            elif name in self.reference:
                parameter.grad.add_(parameter - self.reference[name], alpha=self.alpha)


def _require_classifier(module: Any) -> Any:
    if not (hasattr(module, "schedule") and hasattr(module, "backbone")):
        raise ValueError(f"L2SP decays the trunk of a FineTuner; {type(module).__name__} is none.")
    return module


def _require_unscaled_gradients(trainer: Trainer) -> None:
    """Refuse optimizers that get their gradients scaled: Lightning unscales those of all others before the hook."""
    if getattr(trainer.precision_plugin, "scaler", None) is None:
        return
    for optimizer in trainer.optimizers:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(
                f"L2SP: {type(optimizer).__name__} with fused=true unscales gradients itself, so that the decay would be "
                f"scaled down in precision {trainer.precision}: leave fused out, or give trainer.precision=bf16-mixed."
            )


def _reference(trunk: Mapping[str, Tensor], restored: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return copies of the first weights, or those of the run that is resumed, where the trunk lies.

    Raises:
        ValueError: those are of other parameters.
    """
    if restored is None:
        return {name: weights.clone() for name, weights in trunk.items()}
    shapes = [{name: tuple(weights.shape) for name, weights in of.items()} for of in (trunk, restored)]
    if shapes[0] != shapes[1]:
        other = min({*shapes[0].items()} ^ {*shapes[1].items()})[0]
        raise ValueError(f"L2SP: the first weights in the checkpoint are of another network or strategy ({other}).")
    return {name: restored[name].to(weights) for name, weights in trunk.items()}


def _print_notes(module: Any, trainer: Trainer, alpha: float) -> None:
    """Print where the decay changes nothing, or where another one pulls the same parameters to zero."""
    if not module.schedule.ever_trainable_names() - module.schedule.head:
        echo(field_line("Note", f"l2_sp: strategy {module.strategy.name} trains no pretrained parameter to decay."))
    elif alpha and any(options.get("weight_decay") for o in trainer.optimizers for options in o.param_groups):
        text = "the optimizer's weight_decay pulls the pretrained parameters towards zero, l2_sp towards their first values"
        echo(field_line("Note", f"{text}: optimizer.weight_decay=0 leaves l2_sp alone."))
