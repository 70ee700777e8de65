"""Train, validate and test a pretrained image classifier: the LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune.checkpoints.format import upgrade
from finetune.checkpoints.metadata import CheckpointMetadata, ModelRecord, ValidationRecord
from finetune.images.transforms import batch_augmentation
from finetune.metrics.classification import ClassificationMetrics, TrainingMetrics
from finetune.models.backbone import Backbone, make_backbone
from finetune.models.network import ClassifierNetwork
from finetune.runtime.console import print_table
from finetune.training import checkpointing, distributed, feature_cache, optimization
from finetune.training.arguments import class_names, cross_entropy
from finetune.training.feature_store import FeatureBatch
from finetune.training.resume import ResumeState
from finetune.training.schedule import FreezeSchedule
from finetune.training.strategy import Strategy

Batch = tuple[Tensor, Tensor] | FeatureBatch
"""Images (N, 3, H, W), uint8 or normalised floats, and labels (N,) int64; or features of a frozen trunk."""


class FineTuner(LightningModule):
    """A pretrained image classifier with a new head, and how it is adapted.

    Works in any Lightning `Trainer`:

        module = FineTuner("resnet18", classes=["ants", "bees"], strategy="differential")
        Trainer(max_epochs=5).fit(module, datamodule=ImageDataModule("photos"))

    >>> module = FineTuner("squeezenet1_1", classes=["ants", "bees"], weights="none")
    >>> module(torch.zeros(4, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([4, 2])
    >>> module.head
    Conv2d(512, 2, kernel_size=(1, 1), stride=(1, 1))

    `module.backbone` is the network under its torchvision names, `module.head` its new last layer, `module.classes` the
    class names, `module.preprocess` what images need, `module.schedule` which parameters are trainable when. After
    validation and test, `module.results["val"]` holds every metric, the per-class ones included.
    """

    def __init__(
        self,
        model: str | nn.Module | Backbone = "resnet18",
        classes: Sequence[str] | int = (),
        strategy: str | Mapping[str, Any] | Strategy = "feature_extract",
        *,
        weights: str | None = "default",
        head: str | None = None,
        feature_boundary: str | None = None,
        head_init: str = "default",
        preprocess: Mapping[str, Any] | None = None,
        optimizer: Callable[[Any], Optimizer] | None = optimization.sgd,
        scheduler: Callable[..., LRScheduler] | None = None,
        warmup: float = 0,
        monitor: str = "val/acc",
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        aux_weight: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        transform_input: bool | None = None,
        in_channels: int = 3,
    ) -> None:
        """Build the network and put a head for `classes` on it.

        Args:
            model: a name of the table (`python -m finetune.models`), a Backbone, or a network of your own.
            classes: class names in the order of the labels; a number names them "0", "1", ...
            strategy: a name of `conf/strategy/`, a mapping of Strategy's fields, or a Strategy.
            weights: "default", "none", a name of the weights enum, or a local file. For a `model` given by name. Of a
                checkpoint of this class, the classes that stay keep their rows of the head, by name.
            head: path of the last Linear or Conv2d, for a network of your own.
            feature_boundary: path of the first module that is random in training, for a network of your own; the head
                if None. What enters it is a constant of each image while everything before it is frozen.
            head_init: "default", "xavier_uniform", "xavier_normal" or "zero".
            preprocess: fields of `Preprocess` that differ from the weights' own.
            optimizer: called with parameter groups, for example `partial(torch.optim.AdamW, lr=1e-3)`. Each group's
                rate is the optimizer's times the group's. None: the module cannot be trained until one is set.
            scheduler: called with the optimizer; `max_lr`, `total_steps` and `T_max` are filled in where it takes them
                and they are not given, and then it steps every batch, else every epoch.
            warmup: epochs of linear warm-up of all rates.
            monitor: the metric that ReduceLROnPlateau looks at.
            label_smoothing: share of the target spread over all classes, in 0..1.
            class_weights: a weight per class for the training loss.
            aux_weight: weight of each auxiliary loss; None is the family's own.
            mixup: alpha of MixUp, 0 is off. Training batches only.
            cutmix: alpha of CutMix, 0 is off; with both, one is drawn per batch.
            transform_input: for inception and googlenet, see `Family`; None follows the weights.
            in_channels: of the images, 1 for grey ones; the first convolution is adapted, see `Backbone.create`.

        Raises:
            ValueError: an unknown name, a strategy that does not fit the network, fewer than two classes.
            FileNotFoundError: weights that are not there and cannot be downloaded.
        """
        super().__init__()
        self.strategy, self.classes = Strategy.load(strategy), class_names(classes)
        weights = weights if self.strategy.pretrained else "none"
        backbone = make_backbone(model, weights, head, feature_boundary, transform_input, preprocess, in_channels)
        backbone.replace_head(len(self.classes), head_init, self.classes)
        self.model_name, self.weights_source, self.transform_input = (
            backbone.name, backbone.weights_source, backbone.transform_input
        )  # fmt: skip
        self.family, self.preprocess = backbone.family, backbone.preprocess
        self.backbone: nn.Module = backbone.network.to(memory_format=torch.channels_last)
        self.schedule = FreezeSchedule(self.strategy, backbone, aux_weight)
        self.make_optimizer, self.make_scheduler, self.warmup, self.monitor = optimizer, scheduler, warmup, monitor
        self.criterion = cross_entropy(class_weights, float(label_smoothing), len(self.classes))
        self.batch_augmentation = batch_augmentation(len(self.classes), mixup, cutmix)
        self.train_metrics = TrainingMetrics(len(self.classes))
        self.metrics = nn.ModuleDict({split: ClassificationMetrics(len(self.classes)) for split in ("val", "test")})
        self.results: dict[str, dict[str, Any]] = {}
        self.val_predictions: tuple[Tensor, Tensor] | None = None
        """Of the last validation: probabilities (N, classes) and labels (N,)."""
        self.metadata = CheckpointMetadata()
        """What its checkpoint says: of the file that it was loaded from, and then of this training."""
        self.rates: dict[str, float] = {}
        """The rate of each group in the last step, warm-up included."""
        self._resume = ResumeState()
        self._split_point: str | None = None  # where features enter
        weights_of_classes = None if class_weights is None else [float(weight) for weight in class_weights]
        record = ModelRecord(
            self.model_name, self.classes, self.strategy.to_dict(), head=self.family.head,
            feature_boundary=self.family.feature_boundary, preprocess=self.preprocess.to_dict(),
            label_smoothing=float(label_smoothing), class_weights=weights_of_classes, aux_weight=self.schedule.aux_weight,
            mixup=float(mixup), cutmix=float(cutmix), transform_input=self.transform_input,
            in_channels=self.preprocess.channels, weights_source=self.weights_source,
        )  # fmt: skip
        self.save_hyperparameters(record.to_dict(), logger=False)
        self._enter_epoch()

    @property
    def head(self) -> nn.Module:
        """Return the new last layer."""
        return self.network.head

    @property
    def network(self) -> ClassifierNetwork:
        """Return the backbone with its preprocessing, run as a whole or in parts."""
        head_is_last = self.model_name != "custom" and self.family.build is None
        return ClassifierNetwork(self.backbone, self.preprocess, self.family.head, head_is_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (N, classes) of the main head.

        Args:
            images: (N, 3, H, W), uint8 pixels, or floats that were normalised as `preprocess` says; or V views of each
                image (N, V, 3, H, W), whose probabilities are averaged.
        """
        return self.network.logits(images, exact_head=not self.training)

    def features(self, images: Tensor) -> Tensor:
        """Compute what enters the head (N, D) for images as `forward` takes them."""
        return self.network.head_inputs(images)

    # --- training ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Hand over to the data module, whose own setup came first, what depends on the network."""
        self.schedule.attach(self.trainer)
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "adapt_to"):  # an ImageDataModule
            data.adapt_to(self.classes, self.preprocess, self.schedule.unaugmented_epochs())

    def on_fit_start(self) -> None:
        """Freeze, print the groups, and compute the features of what stays frozen."""
        FineTuner.setup(self, "fit")  # again: a subclass may have a setup of its own
        self.schedule.require_starts()
        self.metadata = replace(self.metadata, validation=ValidationRecord())
        self._enter_epoch()
        if self.trainer.is_global_zero:
            columns = ["group", "tensors", "parameters", "rate", "trainable from"]
            print_table(f"Strategy {self.strategy.name}", columns, self.strategy_table())
        # Lightning restores the epoch only after this hook
        self._split_point = feature_cache.prepare_caches(self, self.trainer, self._resume.epoch)

    def on_train_start(self) -> None:
        """Restore what Lightning has not restored of a resumed run."""
        resume, self._resume = self._resume, ResumeState()
        if resume.is_new:
            return
        self.rates = dict(resume.run.rates)
        self._begin_epoch()  # in the middle of an epoch, nobody calls `on_train_epoch_start`
        resume.restore_metrics(self.train_metrics, self.trainer.is_global_zero)
        resume.rescale_schedulers(self.trainer, self.schedule)

    def on_train_epoch_start(self) -> None:
        """Reset the metrics, and unfreeze what is trainable from this epoch on."""
        self.train_metrics.reset()
        self._begin_epoch()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the main loss plus the weighted auxiliary ones."""
        labels = targets = batch[1]
        if isinstance(batch, FeatureBatch):
            logits, aux = self.network.logits_from(batch.values, str(self._split_point)), list[Tensor]()
        else:
            images = self.network.normalize(batch[0])
            if self.batch_augmentation is not None:
                images, targets = self.batch_augmentation(images, labels)
            logits, aux = self.network.logits_and_aux(images)
        loss: Tensor = self.criterion(logits, targets)
        for aux_logits in aux:
            loss = loss + self.schedule.aux_weight * self.criterion(aux_logits, targets)
        if not torch.isfinite(loss):
            where = distributed.describe_step(self.trainer, batch_idx)
            raise ValueError(f"The loss is {loss.item()} {where} {distributed.DIVERGED_HINT}")
        loss, images_counted = distributed.rescale_loss(loss, targets, self.criterion.weight, self._trainer)
        # with MixUp or CutMix, accuracy is against the larger share of each image
        self.train_metrics.update(loss, logits, targets if targets.ndim == 1 else targets.argmax(dim=1), images_counted)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log loss, accuracy and rates; here and not in the steps, so that a resumed epoch counts all of its batches."""
        # an epoch in which nothing was left to do has none; computing is for all processes or for none
        counted = self.trainer.strategy.reduce_boolean_decision(self.train_metrics.update_called, all=False)
        if counted:
            self.log_dict({f"train/{name}": value for name, value in self.train_metrics.compute().items()})
        self.log_dict(self.rates, rank_zero_only=True)
        optimization.step_plateau(self.lr_schedulers(), self.monitor, self.trainer)  # type: ignore[arg-type]

    def on_train_end(self) -> None:
        """Check that all processes have the same weights."""
        distributed.require_equal_weights(self.backbone, self)

    def configure_optimizers(self) -> Any:
        """Return one optimizer with all groups from the start, so that schedulers and resuming need no care."""
        optimizer = optimization.make_optimizer(self.make_optimizer, self.schedule)
        if self.make_scheduler is None:
            return optimizer
        scheduler = optimization.make_scheduler(self.make_scheduler, optimizer, self.monitor, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step with each group's rate times its factor: 0 before its start, then warm-up."""
        now = epoch + (batch_idx + 1) / max(1, int(self.trainer.num_training_batches))
        factors = self.schedule.rate_factors(epoch, now, self.warmup)
        with optimization.scaled_rates(optimizer, factors) as self.rates:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def train(self, mode: bool = True) -> Self:
        """Set the mode as `nn.Module.train`, but keep what is frozen in evaluation mode."""
        super().train(mode)
        if mode and hasattr(self, "schedule"):
            self.schedule.set_modes(self._epoch)
        return self

    def strategy_table(self) -> list[list[str]]:
        """Return rows of group, tensors, parameters, rate and first trainable epoch."""
        optimizers = self._trainer.optimizers if self._trainer is not None else []
        optimizer = optimizers[0] if optimizers else optimization.make_optimizer(self.make_optimizer, self.schedule)
        return self.schedule.table(optimization.base_lr(optimizer))

    @property
    def _epoch(self) -> int:
        return self.current_epoch if self._trainer is not None else 0

    def _enter_epoch(self) -> bool:
        """Set gradients and modes for the current epoch; return whether gradients changed."""
        changed = self.schedule.set_requires_grad(self._epoch)
        self.train()
        return changed

    def _begin_epoch(self) -> None:
        if self._enter_epoch():  # Lightning never calls .train() here
            distributed.wrap_again(self.trainer, self)

    # --- evaluation --------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the predictions of the main head."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the predictions of the main head."""
        self._evaluation_step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute probabilities (N, classes)."""
        images = batch[0] if isinstance(batch, tuple | list) else batch
        return self(images).softmax(dim=1)

    def _evaluation_step(self, batch: Batch, split: str) -> None:
        if isinstance(batch, FeatureBatch):
            logits = self.network.logits_from(batch.values, str(self._split_point), exact_head=True)
        else:
            logits = self(batch[0])
        self._metrics_of(split).update(logits.float(), batch[1])

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, and keep the predictions for the record of the best epoch."""
        self.val_predictions = self._metrics_of("val").predictions()
        values = self._finish_evaluation("val")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.metadata = replace(self.metadata, validation=checkpointing.validation_record(self.trainer, values))

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._finish_evaluation("test")

    def _finish_evaluation(self, split: str) -> dict[str, Tensor]:
        metrics = self._metrics_of(split)
        values = metrics.compute()
        metrics.reset()
        self.results[split] = {name: value.tolist() for name, value in values.items()}
        scalars = {f"{split}/{name}": value for name, value in values.items() if value.ndim == 0}
        self.log_dict(scalars, batch_size=1, prog_bar=split == "val")
        return values

    def _metrics_of(self, split: str) -> ClassificationMetrics:
        metrics: Any = self.metrics[split]
        found: ClassificationMetrics = metrics
        return found

    # --- checkpoints -------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where a run goes on; not for `load_from_checkpoint`, or where a checkpoint is only tested."""
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            upgrade(checkpoint)
            self._resume = ResumeState.from_entries(checkpoint, self.trainer.world_size)
            self.schedule.keep_started(self._resume.run.start_epochs, self._resume.epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the checkpoint says of itself, and of the run where there is one."""
        checkpointing.add_metadata(checkpoint, self, self._trainer)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint without the state of a run: what `finetune.load` and `load_from_checkpoint` need."""
        checkpointing.save_weights(self, path)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: None = None,
        strict: bool = True,
        weights_only: bool = True,
        **changes: Any,
    ) -> Self:
        """Load a module as it was saved, from the file alone: no network, no configuration, no pretrained weights.

        Args:
            checkpoint_path: a file that `finetune` wrote.
            map_location: the device; None is the CPU.
            hparams_file: an argument of Lightning's own method, and not needed.
            strict: see `changes`.
            weights_only: files are never read otherwise.
            changes: arguments of the constructor in place of those that were saved, `optimizer=` for example; with
                `classes`, `strict=False` keeps the rows of the head whose classes stay, by name, and makes new ones.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, holds code, or was not written by `finetune`.
        """
        if hparams_file is not None or not weights_only:
            raise ValueError("A checkpoint needs no hparams_file, and is always read with weights_only=True.")
        return checkpointing.load_module(cls, checkpoint_path, map_location, strict, changes)
