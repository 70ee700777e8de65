"""Train on small images first, and on larger ones from epoch to epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

from finetune.training.run_length import resolve_max_epochs


class ProgressiveResizing(Callback):
    """Resizes training batches: their sides grow from epoch to epoch up to the size that images are evaluated at.

    An epoch of images of half the side takes about a quarter of the time. Batches of features, while a trunk is frozen, stay as they are, and so does
    every image that is evaluated.

    Source: Howard, "Training Imagenet in 3 hours for $25", 2018; Tan and Le, "EfficientNetV2: Smaller Models and Faster
    Training", 2021.
    """

    def __init__(self, start: float = 0.5, full: float = 0.75, multiple: int = 32) -> None:
        """Set how the side grows.

        Args:
            start: share of the final side in the first epoch.
            full: share of the epochs after which images have their final side.
            multiple: sides are multiples of so many pixels, but for the final one.

        Raises:
            ValueError: a share is not between 0 and 1, or the multiple is below 1.
        """
        super().__init__()
        if not 0 < start <= 1 or not 0 <= full <= 1 or multiple < 1:
            raise ValueError(
                f"ProgressiveResizing takes shares from 0 to 1 and a multiple of 1 or more, got start={start}, full={full}, "
                f"multiple={multiple}."
            )
        self.start, self.full, self.multiple = start, full, multiple
        self._share: float | None = None
        """Of the final side, while a training batch is computed."""
        self._hook: Any = None

    def side(self, size: int, share: float) -> int:
        """Return the side in pixels at a share of the final one."""
        return min(size, max(1, round(size * share / self.multiple)) * self.multiple)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Stand before the network.

        Raises:
            ValueError: the run has no end, or the network takes images of one size only.
        """
        if resolve_max_epochs(trainer.max_epochs) is None:
            raise ValueError("ProgressiveResizing needs a run with an end: give max_epochs.")
        self._require_sizes(pl_module)
        self._hook = pl_module.backbone.register_forward_pre_hook(self._resize)

    def _require_sizes(self, module: Any) -> None:
        preprocess = module.preprocess
        side = self.side(preprocess.size, self.start)
        network: nn.Module = module.backbone
        modes = {layer: layer.training for layer in network.modules()}
        try:
            with torch.no_grad():
                network.eval()(
                    torch.zeros(1, preprocess.channels, side, side, device=module.device, dtype=_dtype(network))
                )
        # what a network raises is up to it
        except Exception as error:
            raise ValueError(
                f"ProgressiveResizing begins with images of {side} x {side}, which {module.model_name} does not take "
                f"({str(error).splitlines()[0]}): leave it out, or give a larger start."
            ) from error
        finally:
            for layer, mode in modes.items():
                layer.training = mode

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the size of the batch, by the epoch alone: a resumed run has the same."""
        epochs = resolve_max_epochs(trainer.max_epochs) or 1
        done = trainer.current_epoch / max(1, math.ceil(self.full * epochs))
        self._share = min(1.0, self.start + (1 - self.start) * done)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Leave images that are evaluated as they are."""
        self._share = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stand no longer before the network, which may be used on."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand no longer before the network."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._share = None

    def _resize(self, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._share is None or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
            return None
        images, *others = inputs
        side = self.side(images.shape[-1], self._share)
        if side >= images.shape[-1]:
            return None
        small = functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        return (small, *others)


def _dtype(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters()), torch.float32)
