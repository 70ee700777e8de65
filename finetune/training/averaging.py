"""Keep an average of the weights beside those that are trained, and save what validates better."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from finetune.checkpoints.format import RAW_IS_SAVED
from finetune.runtime.console import echo, field_line
from finetune.training import batches
from finetune.training.run_length import resolve_max_epochs


class AveragingBeside(WeightAveraging):
    """Validates an average of the weights and the weights themselves, and logs and saves what is better by the monitor.

    Lightning's `WeightAveraging` validates and saves the average alone, which is behind the weights for as long as they learn fast.

    A batch passes both networks. Where a module has a `validation_step` of its own, the average alone is validated, as by Lightning, and where
    nothing is validated it is saved.
    """

    _raw_better_at = -1
    """Steps before the last validation, if the weights were the better there."""
    _validations = _raw_better = 0
    _is_beside = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average; a callback that was in another fit begins anew."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._raw_better_at, self._validations, self._raw_better = -1, 0, 0
            trainer.precision_plugin.convert_module(self._other)  # as Lightning does with the module, later

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the module to its device, on which it was not yet when the average was made."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    @property
    def _other(self) -> Any:
        """Return the module that holds, during a validation, the weights, and else the average."""
        assert self._average_model is not None
        return self._average_model.module

    @property
    def _has_begun(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    @property
    def _is_swapped(self) -> bool:
        """Return whether the average is validated now, and has changed places with the weights."""
        return self._has_begun

    def _swap_models(self, pl_module: LightningModule) -> None:
        if self._is_swapped:
            super()._swap_models(pl_module)

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        if self._has_begun:
            super()._copy_average_to_current(pl_module)

    # --- validating both ---------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Put the average in place of the weights, which are validated beside it."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        super().on_validation_epoch_start(trainer, pl_module)
        # a step of the user's own may log anything
        is_ours = type(pl_module).validation_step.__module__ == "finetune.training.module"
        self._is_beside = is_ours and self._is_swapped and not trainer.sanity_checking
        pl_module.rejected_predictions = None
        if self._is_beside:
            self._other.eval()
            self._other.preprocess = pl_module.preprocess  # it was copied before the data had their say
            _reset(self._other.metrics)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count what the weights predict for the same batch."""
        if not self._is_beside:
            return
        images, labels = batches.unpack_batch(batch, pl_module.batch_keys)
        name = batches.loader_name("val", dataloader_idx, trainer)
        if isinstance(images, batches.Features):  # of a frozen trunk, which both have
            values = images.values_for(pl_module.backbone)
            images = batches.Features.wrap(values, images.split_point, self._other.backbone)
        with trainer.precision_plugin.val_step_context():
            self._other.metrics[name].update(self._other(images).float(), labels)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Hand over the better of both for what is logged, and put the weights back."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if self._is_beside:
            is_raw = self._is_raw_better(pl_module)
            self._validations += 1
            self._raw_better += is_raw
            self._raw_better_at = trainer.global_step if is_raw else -1
            if is_raw:
                pl_module.metrics, self._other.metrics = self._other.metrics, pl_module.metrics
            started = self._other.metrics.started("val")
            pl_module.rejected_predictions = self._other.metrics["val"].predictions() if "val" in started else None
            _reset(self._other.metrics)
        pl_module.average_was_validated = self._is_swapped and not (self._is_beside and is_raw)
        self._is_beside = False
        super().on_validation_epoch_end(trainer, pl_module)

    def _is_raw_better(self, module: Any) -> bool:
        averaged, raw = (each.metrics.scalars("val") for each in (module, self._other))
        monitor = module.monitor
        if monitor not in raw:
            return False
        sign = -1 if module.metrics.monitor_mode(monitor) == "min" else 1
        return sign * float(raw[monitor]) > sign * float(averaged[monitor])

    # --- saving the better -------------------------------------------------------------------------------------

    def _saves_raw(self, trainer: Trainer) -> bool:
        """Return whether the weights themselves are what counts now."""
        return self._raw_better_at == trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the better of both in the module, and print how often which one was better."""
        if self._saves_raw(trainer):
            self._other.load_state_dict(pl_module.state_dict())
        else:
            super().on_train_end(trainer, pl_module)
        pl_module.rejected_predictions, pl_module.average_was_validated = None, False
        if self._validations and trainer.is_global_zero:
            better = self._validations - self._raw_better
            text = f"better than the weights themselves in {better} of {self._validations} validations"
            echo(field_line("Average", text))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        own = {"raw_better_at": self._raw_better_at, "validations": self._validations, "raw_better": self._raw_better}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; a checkpoint of an earlier version has the step alone."""
        super().load_state_dict(state_dict)
        self._raw_better_at = state_dict.get("raw_better_at", -1)
        self._validations, self._raw_better = (state_dict.get(key, 0) for key in ("validations", "raw_better"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save what counts as the weights of the checkpoint, and the other beside it; at first there is no average."""
        if self._average_model is not None and not self._has_begun:
            self._other.load_state_dict(pl_module.state_dict())
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None and self._saves_raw(trainer):
            _exchange(checkpoint)
            checkpoint[RAW_IS_SAVED] = True

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the weights and their average to go on with, whichever of both the checkpoint is of."""
        if trainer.state.fn != TrainerFn.FITTING:  # where it is tested, what was saved is loaded
            return
        if checkpoint.get(RAW_IS_SAVED) and "current_model_state" in checkpoint:
            checkpoint = dict(checkpoint)
            _exchange(checkpoint)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _reset(metrics: Any) -> None:
    with torch.inference_mode(False):  # else a training could not count on
        for counted in metrics.of_split.values():
            counted.reset()


def _exchange(checkpoint: dict[str, Any]) -> None:
    """Let the two sets of weights of a checkpoint change places."""
    pair = checkpoint["current_model_state"], checkpoint["state_dict"]
    checkpoint["state_dict"], checkpoint["current_model_state"] = pair


class EMA(AveragingBeside):
    """Keeps an exponential moving average of the weights of all steps.

    After step n, min(decay, (1 + n) / (10 + n)) of the average stays: in a short run, an average with a decay near 1 would mostly be the weights that the run
    began with. Source: TensorFlow's ExponentialMovingAverage and timm's ModelEmaV3, which rise so too.
    """

    def __init__(self, decay: float = 0.99) -> None:
        """Set the decay that is reached in the end.

        Raises:
            ValueError: it is not between 0 and 1.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be from 0 to below 1, got {decay}.")
        super().__init__(multi_avg_fn=partial(_move, decay))


def _move(decay: float, averages: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
    """Move averages towards the weights after another step, in place; counts of batches are taken as they are."""
    done = int(steps)
    decay = min(decay, (1 + done) / (10 + done))
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, 1 - decay) if average.is_floating_point() else average.copy_(weight)


class EpochAveraging(AveragingBeside):
    """Keeps the mean of the weights at the ends of the last epochs: stochastic weight averaging.

    Lightning's `StochasticWeightAveraging` averages after the last checkpoint was written, and its `WeightAveraging` after
    the validation of an epoch; here the weights that are validated are those that are saved.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018.
    """

    def __init__(self, start: float = 0.75) -> None:
        """Set how many epochs come before the first that is averaged; below 1 a share of the run.

        Raises:
            ValueError: it is negative.
        """
        if start < 0:
            raise ValueError(f"EpochAveraging: start must be 0 or more, got {start}.")
        super().__init__()
        self.start, self._first, self._last_batch = start, 0, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average, and find its first epoch.

        Raises:
            ValueError: the start is a share of a run without an end.
        """
        super().setup(trainer, pl_module, stage)
        end = resolve_max_epochs(trainer.max_epochs)
        if 0 < self.start < 1 and end is None:
            raise ValueError(f"EpochAveraging: start={self.start} is a share of the run, which has no end.")
        self.plan(end)
        if stage == "fit" and end is not None and self._first >= end > 0:
            raise ValueError(f"EpochAveraging: start={self.start:g} lies beyond the {end} epochs of the run.")

    def plan(self, end: int | None) -> None:
        """Find the first epoch that is averaged in a run of `end` epochs."""
        share = min(round(self.start * (end or 0)), max((end or 0) - 1, 0))  # the last epoch at least is averaged
        self._first = int(self.start) if self.start >= 1 else share

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the weights at the end of an epoch, before they are validated."""
        is_averaged = self._has_begun or trainer.current_epoch >= self._first  # a longer run does not leave off
        self._last_batch = trainer.is_last_batch and is_averaged
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether an epoch that is averaged has just ended."""
        return step_idx is not None and self._last_batch
