"""Validate a head that is solved by cross-validation, in a run that holds no images out."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from finetune.training.history import find_history


class OutOfFoldValidation(Callback):
    """Validates the epoch of a solved head with its out-of-fold predictions: `val/acc` is that of the cross-validation.

    The module is of all training images, and each of them was predicted by a head that had not seen it. Put it before
    callbacks that look at a metric.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that cannot be validated so.

        Raises:
            ValueError: the head was not cross-validated.
        """
        if getattr(pl_module, "out_of_fold", None) is None:
            raise ValueError(
                "eval=kfold: there are no out-of-fold predictions to evaluate: the strategy trains more than a solved head, or "
                "there are too few images in a class for three folds; eval=holdout holds some images out."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the predictions as those of a validation are counted, each process its share of them."""
        module: Any = pl_module
        logits, labels = module.out_of_fold
        rank, processes = trainer.global_rank, trainer.world_size
        shares = [part[rank::processes].to(module.device) for part in (logits.float(), labels)]
        module.metrics["val"].update(*shares)
        module.on_validation_epoch_end()
        data: Any = getattr(trainer, "datamodule", None)
        if len(labels) != len(data.splits["train"]):  # of so many that some stand for all: their names are not known
            module.val_predictions = None
        find_history(trainer).on_validation_end(trainer, pl_module)
