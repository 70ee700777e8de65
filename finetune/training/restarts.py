"""Train several times from the same weights within one run, and average what comes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from finetune.training.averaging import AveragingBeside


class RestartSoup(AveragingBeside):
    """Goes back to the weights of the beginning every few epochs, and averages the weights at the ends of these trainings.

    Each training has rates that fall as half a cosine, and other augmented images in another order. At its end, the mean of all trainings so far is validated
    beside its own weights, and the better of both is logged and saved. A head that is solved before the first epoch is where each begins.

    Take `scheduler=constant` with it: the rates are its own.

    Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", 2022; Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018.
    """

    def __init__(self, epochs: int = 5, warmup: float = 1.0) -> None:
        """Set the length of each training.

        Args:
            epochs: of each training.
            warmup: epochs of linear warm-up of each.

        Raises:
            ValueError: a training has no epoch, or is all warm-up.
        """
        if epochs < 1 or not 0 <= warmup <= epochs:
            raise ValueError(
                f"RestartSoup takes epochs of 1 or more and a warmup within them, got epochs={epochs}, warmup={warmup:g}."
            )
        super().__init__()
        self.epochs, self.warmup = epochs, warmup
        self._beginning: dict[str, Tensor] = {}
        self._first, self._is_end = 0, False

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Make the average.

        Raises:
            ValueError: a scheduler would change the rates too.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if getattr(pl_module, "make_scheduler", None) is not None:
            raise ValueError("RestartSoup has rates of its own, which fall in each training: give scheduler=constant.")
        self._beginning, self._first, self._is_end = {}, int(pl_module.strategy.solve_head), False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the weights that every training begins from."""
        self._beginning = self._beginning or {k: v.clone() for k, v in pl_module.backbone.state_dict().items()}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin a training."""
        done = trainer.current_epoch - self._first
        if done > 0 and done % self.epochs == 0:
            pl_module.backbone.load_state_dict(self._beginning)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the rates of the step."""
        optimizer: Any = trainer.optimizers[0]
        done, batches = trainer.current_epoch - self._first, max(1, int(trainer.num_training_batches))
        factor = self.rate_factor(max(0, done) % self.epochs + batch_idx / batches, 1 / batches)
        for (group, _), options in zip(pl_module.schedule.groups, optimizer.param_groups, strict=True):
            # kept with the group: a resumed run goes on at the rate that it began with
            options["lr"] = options.setdefault("base_lr", optimizer.defaults["lr"] * group.lr) * factor

    def rate_factor(self, begin: float, length: float) -> float:
        """Return the factor of all rates in a step that begins so many epochs after its training, and takes so much of one."""
        falling = (1 + math.cos(math.pi * begin / self.epochs)) / 2
        return falling * (min(1.0, (begin + length) / self.warmup) if self.warmup else 1.0)

    def _ends_training(self, epoch: int) -> bool:
        return epoch >= self._first and (epoch - self._first + 1) % self.epochs == 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the weights at the end of a training, before they are validated."""
        self._is_end = trainer.is_last_batch and self._ends_training(trainer.current_epoch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether a training has just ended."""
        return step_idx is not None and self._is_end

    @property
    def _is_swapped(self) -> bool:
        return self._is_end

    def _saves_raw(self, trainer: Trainer) -> bool:
        return not self._is_end or super()._saves_raw(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, the weights of the beginning included."""
        return {**super().state_dict(), "beginning": self._beginning, "is_end": self._is_end}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on, also with a validation at the end of a training."""
        super().load_state_dict(dict(state_dict))
        self._beginning, self._is_end = dict(state_dict["beginning"]), bool(state_dict["is_end"])
