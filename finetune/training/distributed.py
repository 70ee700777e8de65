"""Keep several processes equivalent to one, and describe a step in errors."""

from __future__ import annotations

import gc
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from finetune.training.losses import weights_of_mean
from finetune.training.param_groups import group_names

NAMED_IMAGES = 32
"""Images of a batch that an error names."""

DIVERGED_HINT = (
    "Try a smaller optimizer.lr (a tenth), or scheduler.warmup=1. The checkpoints written so far are good, and none was "
    "written after this."
)


def leave_group(all_are_here: bool = True) -> None:
    """End the connection to the other processes of a run on CPUs; nothing where there is none.

    Lightning does so for NCCL alone. A thread of gloo may still hold the last tensor that was sent, and gives it back to
    Python; where Python is already being shut down, that aborts the process: "terminate called without an active
    exception", exit code 134 (PyTorch's issue 190489). Here it is waited for.

    Args:
        all_are_here: False leaves all as it is: one that waits for a process that is gone would wait for long.
    """
    distributed = torch.distributed
    if not all_are_here or not (distributed.is_available() and distributed.is_initialized()):
        return
    if distributed.get_backend() == "gloo":
        gc.collect()  # what the wrapped network still holds of the group would be freed with Python's lock held, and block
        distributed.destroy_process_group()


class DivergedError(ValueError):
    """The loss of a training step is not finite."""


def rescale_loss(loss: Tensor, targets: Tensor, criterion: Any, trainer: Trainer | None) -> tuple[Tensor, Tensor | int]:
    """Scale a mean over this process's images such that the mean over all processes is that over all their images.

    Processes differ in the last batch of an `ImageDataModule`, and in the weights of their images' classes.

    Args:
        loss: mean over this process's images.
        targets: labels (N,), or shares of classes (N, classes).
        criterion: the loss; cross entropy with class weights divides by the weights of its images.
        trainer: None outside of a training.

    Returns:
        The loss, and how many images it stands for.
    """
    if trainer is None or trainer.world_size == 1:
        return loss, len(targets)
    if getattr(criterion, "reduction", None) == "sum":
        return loss * trainer.world_size, len(targets)  # processes average their gradients
    weights = weights_of_mean(criterion) if targets.ndim == 1 else None
    if weights is None and not (trainer.is_last_batch and _image_data(trainer) is not None):
        return loss, len(targets)
    exact = torch.promote_types(loss.dtype, torch.float32)  # in 16 bits these counts would be rounded
    counted = len(targets) if weights is None else float(weights[targets].sum(dtype=exact))
    mine = torch.tensor([counted, len(targets)], device=loss.device, dtype=exact)
    average: Any = trainer.strategy.reduce(mine.clone(), reduce_op="mean")
    return loss * (mine[0] / average[0]), average[1]


def wrap_again(trainer: Trainer, module: LightningModule) -> None:
    """Let DDP synchronise parameters that have become trainable: it wraps what was trainable when it was set up."""
    strategy: Any = trainer.strategy
    if trainer.world_size > 1 and hasattr(strategy, "_setup_model") and strategy.model not in (None, module):
        strategy.model = strategy._setup_model(module)


def require_equal_weights(network: nn.Module, module: LightningModule) -> None:
    """Check at the end of a training that all processes have the same weights.

    Raises:
        RuntimeError: they differ.
    """
    if module.trainer.world_size == 1:
        return
    mine = torch.stack([p.detach().double().sum() for p in network.parameters()])
    everyone: Any = module.all_gather(mine)
    if not bool((everyone == everyone[0]).all()):
        raise RuntimeError("The weights differ between processes: this run is void. Please report it.")


def require_finite_loss(loss: Tensor, module: LightningModule, batch_idx: int) -> None:
    """Stop a training that has diverged.

    Raises:
        DivergedError: the loss is not finite; says where, and what to do.
    """
    if not torch.isfinite(loss):
        raise DivergedError(f"The loss is {loss.item()} {describe_step(module.trainer, batch_idx)} {DIVERGED_HINT}")


def describe_step(trainer: Trainer, batch_idx: int) -> str:
    """Describe a training step for an error: its epoch and batch, its rates, and the images of the batch."""
    rates = ", ".join(
        f"{name} {options['lr']:.3g}"
        for optimizer in trainer.optimizers
        for name, options in zip(group_names(optimizer), optimizer.param_groups, strict=True)
    )
    text = f"in epoch {trainer.current_epoch + 1}, batch {batch_idx + 1} (rates: {rates})"
    data = _image_data(trainer)
    if data is None:
        return f"{text}."
    names = data.batch_keys(batch_idx)
    more = f" and {len(names) - NAMED_IMAGES} more" if len(names) > NAMED_IMAGES else ""
    return f"{text}, with the images {', '.join(names[:NAMED_IMAGES])}{more}."


def _image_data(trainer: Trainer) -> Any:
    """Return the data module if it is an `ImageDataModule`, which names the images of a batch; else None."""
    data = getattr(trainer, "datamodule", None)
    return data if hasattr(data, "batch_keys") else None
