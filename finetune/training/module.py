"""Train, validate and test a pretrained image classifier: the LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from finetune.checkpoints.format import upgrade
from finetune.checkpoints.metadata import CheckpointMetadata
from finetune.images.transforms import batch_augmentation
from finetune.metrics.classification import SplitMetrics, TrainingMetrics
from finetune.models.backbone import Backbone
from finetune.models.network import ClassifierNetwork
from finetune.training import arguments, batches, checkpointing, distributed, heads, losses, optimization, solved_head
from finetune.training.callbacks import refuse_callbacks
from finetune.training.feature_cache import prepare_caches
from finetune.training.hooks import require_super
from finetune.training.resume import ResumeState
from finetune.training.resume_check import require_same_model
from finetune.training.schedule import FreezeSchedule
from finetune.training.strategy import Strategy


class FineTuner(LightningModule):
    """A pretrained image classifier with a new head, and how it is adapted.

    Works in any Lightning `Trainer`::

        module = FineTuner("resnet18", classes=["ants", "bees"], strategy="differential")
        Trainer(max_epochs=5).fit(module, datamodule=ImageDataModule("photos"))

    >>> module = FineTuner("squeezenet1_1", classes=["ants", "bees"], weights="none")
    >>> module(torch.zeros(4, 3, 64, 64, dtype=torch.uint8)).shape
    torch.Size([4, 2])
    >>> module.head
    Conv2d(512, 2, kernel_size=(1, 1), stride=(1, 1))

    `module.backbone` is the network under its torchvision names, `module.head` its new last layers (set it to have others),
    `module.classes` the class names, `module.preprocess` what images need, `module.schedule` which parameters are
    trainable when, `module.criterion` the training loss, `module.lr` the rate that the groups' rates are multiples of.
    After validation and test, `module.results["val"]` holds every metric, the per-class ones included.

    A batch is images (N, 3, H, W), uint8 or normalised floats, and labels (N,) int64, as a tuple or a mapping. While a
    trunk is frozen, features may stand in place of the images; `self(images)` takes both.
    """

    @arguments.checked
    def __init__(
        self,
        model: str | nn.Module | Backbone = "resnet18",
        classes: Sequence[str] | int = (),
        strategy: str | Mapping[str, Any] | Strategy = "feature_extract",
        *,
        weights: str | Path | None = "default",
        head: str | nn.Module | Mapping[str, Any] | None = None,
        feature_boundary: str | None = None,
        head_init: str = "default",
        preprocess: Mapping[str, Any] | None = None,
        optimizer: Callable[[Any], Optimizer] | None = optimization.sgd,
        scheduler: Callable[..., LRScheduler] | None = None,
        scheduler_interval: str = "auto",
        warmup: float = 0,
        monitor: str = "val/acc",
        loss: Callable[..., Any] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        batch_keys: Sequence[str] | None = None,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Tensor | None = None,
        aux_weight: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        transform_input: bool | None = None,
        in_channels: int = 3,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the network and put a head for `classes` on it.

        Args:
            model: a name of the table (`python -m finetune.models`), "timm:NAME", a Backbone, or a network of your own.
            classes: class names in the order of the labels; a number names them "0", "1", ...
            strategy: a name of `conf/strategy/`, a mapping of Strategy's fields, or a Strategy.
            weights: "default", "none", a name of the weights enum, "package", or a local file. For a `model` given by name. Of a
                checkpoint of this class, the classes that stay keep their rows of the head, by name.
            head: the path of the last Linear or Conv2d, for a network of your own; or layers to put in place of the head;
                or {"path": ..., "layers": ...} for both.
            feature_boundary: path of the first module that is random in training, for a network of your own; the head
                if None. What enters it is a constant of each image while everything before it is frozen.
            head_init: "default", "xavier_uniform", "xavier_normal" or "zero".
            preprocess: fields of `Preprocess` that differ from the weights' own.
            optimizer: called with parameter groups, for example `partial(torch.optim.AdamW, lr=1e-3)`. Each group's
                rate is the optimizer's times the group's. None: the module cannot be trained until one is set.
            scheduler: called with the optimizer; `total_steps` and `T_max` are filled in where it takes them and they are
                not given. One number for `max_lr` or `base_lr` is scaled by each group's multiplier.
            scheduler_interval: "step" or "epoch"; "auto" is every step where the length is filled in, for one that is
                given `total_steps`, OneCycleLR and CyclicLR, and every epoch for others, as torch's documentation has it.
            warmup: epochs of linear warm-up of all rates.
            monitor: the metric that ReduceLROnPlateau looks at.
            loss: a function or module of logits (N, classes) and targets that returns one number, or one for each image;
                or the class of one. Targets are labels (N,), or shares (N, classes) with MixUp. None is cross entropy.
            metrics: further metrics of probabilities (N, classes) and labels (N,), logged under their names.
            batch_keys: of images and labels, for batches that are mappings; None takes the usual ones.
            label_smoothing: share of the target spread over all classes, in 0..1.
            class_weights: a weight per class for the training loss.
            aux_weight: weight of each auxiliary loss; None is the family's own.
            mixup: alpha of MixUp, 0 is off. Training batches only.
            cutmix: alpha of CutMix, 0 is off; with both, one is drawn per batch.
            transform_input: for inception and googlenet, see `Family`; None follows the weights.
            in_channels: of the images, 1 for grey ones; the first convolution is adapted, see `Backbone.create`.
            model_options: further arguments of the constructor of a network that is named, {"drop_path_rate": 0.1} say.

        Raises:
            ValueError: an unknown name, a strategy that does not fit the network, fewer than two classes.
            FileNotFoundError: weights that are not there and cannot be downloaded.
        """
        super().__init__()
        self.strategy = Strategy.load(strategy)
        # also as an argument: Lightning compares arguments, and arrays fail
        classes = self.classes = arguments.class_names(classes)
        weights = str(weights or "none") if self.strategy.pretrained else "none"
        backbone = arguments.build_backbone(
            model, weights, head, self.classes, head_init, feature_boundary, transform_input, preprocess, in_channels,
            model_options,
        )  # fmt: skip
        self._backbone, self.family, self.transform_input = backbone, backbone.family, backbone.transform_input
        self.model_name, self.weights_source = backbone.name, backbone.weights_source
        self.preprocess, self._given_preprocess = backbone.preprocess, dict(preprocess or {})
        self.schedule = FreezeSchedule(self.strategy, backbone, aux_weight)
        self.backbone: nn.Module = backbone.network.to(memory_format=torch.channels_last)
        self.make_optimizer, self.make_scheduler, self.scheduler_interval = optimizer, scheduler, scheduler_interval
        self.warmup, self.monitor, self.batch_keys = warmup, monitor, batch_keys
        arguments.require_not_negative(warmup=warmup, mixup=mixup, cutmix=cutmix, aux_weight=aux_weight)
        class_weights = arguments.plain_floats("class_weights", class_weights)
        self.criterion: Any = losses.make_criterion(loss, class_weights, float(label_smoothing), len(self.classes))
        self.batch_augmentation = batch_augmentation(len(self.classes), mixup, cutmix)
        self.train_metrics, self.metrics = TrainingMetrics(len(self.classes)), SplitMetrics(len(self.classes), metrics)
        self.results: dict[str, dict[str, Any]] = {}
        self.val_predictions: tuple[Tensor, Tensor] | None = None
        """Of the last validation: probabilities (N, classes) and labels (N,)."""
        self.out_of_fold: tuple[Tensor, Tensor] | None = None
        """Of a solved head, for images that it was not fitted on: logits (N, classes) float64 and labels (N,)."""
        self.metadata, self._resume = CheckpointMetadata(), ResumeState()
        """What its checkpoint says: of the file that it was loaded from, and then of this training."""
        self.rates: dict[str, float] = {}
        """The rate of each group in the last step, warm-up included."""
        self._lr: float | None = None
        record = checkpointing.model_record(self, class_weights, label_smoothing, mixup, cutmix)
        self.save_hyperparameters(record.to_dict(), logger=False)
        self._enter_epoch()

    @property
    def head(self) -> nn.Module:
        """Return the new last layers; setting it replaces them, in the network and in the groups of the strategy."""
        return self.network.head

    @head.setter
    def head(self, layers: nn.Module) -> None:
        heads.set_head(self, layers)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a head, a backbone or a strategy takes the place of the one that is trained.

        Raises:
            ValueError: it does not fit.
        """
        if name == "head":
            object.__setattr__(self, name, value)  # nn.Module's would register it beside the backbone
        else:
            super().__setattr__(name, heads.prepare(self, name, value))
            heads.follow(self, name)

    @property
    def lr(self) -> float | None:
        """Return the rate that the groups' rates are multiples of; setting it holds for the next fit."""
        if self._lr is None:
            return optimization.base_lr(optimization.make_optimizer(self.make_optimizer, self.schedule, None))
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = float(value)

    @property
    def network(self) -> ClassifierNetwork:
        """Return the backbone with its preprocessing, run as a whole or in parts."""
        return ClassifierNetwork(self.backbone, self.preprocess, (self.family.head, *self.family.more_heads))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (N, classes) of the main head.

        Args:
            images: (N, 3, H, W), uint8 pixels, or floats that were normalised as `preprocess` says; or V views of each
                image (N, V, 3, H, W), whose probabilities are averaged; or features of a batch.
        """
        if isinstance(images, batches.Features):
            values = images.values_for(self.backbone)
            return self.network.logits_from(values, images.split_point, exact_head=not self.training)
        return self.network.logits(images, exact_head=not self.training)

    def features(self, images: Tensor) -> Tensor:
        """Compute what enters the head (N, D) for images as `forward` takes them."""
        return self.network.head_inputs(images)

    # --- training ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Agree with the data module, whose own setup came first, on classes and preprocessing.

        Raises:
            ValueError: they contradict each other, or a callback does not go with a FineTuner.
        """
        refuse_callbacks(self.trainer)
        heads.plan_for_added(self)
        self.schedule.attach(self.trainer)
        arguments.agree_with_data(self, self._given_preprocess, self.trainer, stage == "fit")
        if stage == "fit":
            self._enter_epoch()  # before DDP looks at what is trainable

    def on_fit_start(self) -> None:
        """Freeze, print the groups, and compute the features of what stays frozen."""
        FineTuner.setup(self, "fit")  # again: a subclass may have a setup of its own
        self.metadata = self.metadata.without_measurements()
        self.schedule.require_starts()
        if self._lr is not None and any(optimization.base_lr(o) != self._lr for o in self.trainer.optimizers):
            self.trainer.strategy.setup_optimizers(self.trainer)  # a callback has found a rate since they were made
        losses.note_other_loss(self.metadata.loss, self.criterion, self.trainer.is_global_zero)
        self.schedule.announce(self.strategy_table(), self.weights_source, self.trainer.is_global_zero)
        # Lightning restores the epoch only after this hook
        prepare_caches(self, self.trainer, self._resume.epoch)
        self.out_of_fold = solved_head.solve(self, self.trainer, self._resume)

    def on_train_start(self) -> None:
        """Restore what Lightning has not restored of a resumed run."""
        resume, self._resume = self._resume, ResumeState()
        if resume.is_new:
            return
        self.rates = dict(resume.run.rates)
        self._begin_epoch()  # in the middle of an epoch, nobody calls `on_train_epoch_start`
        resume.restore_metrics(self.train_metrics, self.trainer)
        if optimization.fills_length(self.make_scheduler):
            resume.rescale_schedulers(self.trainer, self.schedule)

    def on_train_epoch_start(self) -> None:
        """Reset the metrics, and unfreeze what is trainable from this epoch on."""
        self.train_metrics.reset()
        self._begin_epoch()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the main loss plus the weighted auxiliary ones."""
        images, labels = batches.unpack_batch(batch, self.batch_keys)
        targets, aux = labels, list[Tensor]()
        if isinstance(images, batches.Features):
            logits = self(images)
        else:
            batches.note_scale(images, self.preprocess, is_first=self.global_step == 0 and batch_idx == 0)
            images = self.network.normalize(images)
            if self.batch_augmentation is not None:
                images, targets = self.batch_augmentation(images, labels)
            logits, aux = self.network.logits_and_aux(images)
        loss = losses.total_loss(self.criterion, logits, aux, targets, self.schedule.aux_weight)
        distributed.require_finite_loss(loss, self, batch_idx)
        loss, images_counted = distributed.rescale_loss(loss, targets, self.criterion, self._trainer)
        # with MixUp or CutMix, accuracy is against the larger share of each image
        self.train_metrics.update(loss, logits, targets if targets.ndim == 1 else targets.argmax(dim=1), images_counted)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log loss, accuracy and rates; here and not in the steps, so that a resumed epoch counts all of its batches."""
        # an epoch in which nothing was left to do has none; computing is for all processes or for none
        if self.trainer.strategy.reduce_boolean_decision(self.train_metrics.update_called, all=False):
            self.log_dict({f"train/{name}": value for name, value in self.train_metrics.compute().items()})
        self.log_dict(self.rates, rank_zero_only=True)
        optimization.set_train_mode(self.trainer.optimizers, training=False)  # what is saved now
        optimization.step_plateau(self.monitor, self.metadata.validation.epoch, self.trainer)

    def on_train_end(self) -> None:
        """Check that all processes have the same weights."""
        distributed.require_equal_weights(self.backbone, self)

    def configure_optimizers(self) -> Any:
        """Return one optimizer with all groups from the start, so that schedulers and resuming need no care."""
        return optimization.configure_optimizers(self, self._lr, self.trainer)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step with each group's rate times its factor: 0 before its start, then warm-up."""
        factors = optimization.step_factors(optimizer, self.schedule, self.trainer, epoch, batch_idx, self.warmup)
        with optimization.scaled_rates(optimizer, factors) as self.rates:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def train(self, mode: bool = True) -> Self:
        """Set the mode as `nn.Module.train`, but keep what is frozen in evaluation mode."""
        super().train(mode)
        if mode and hasattr(self, "schedule"):
            self.schedule.set_modes(self._epoch or 0)
        return self

    def strategy_table(self) -> list[list[str]]:
        """Return rows of group, tensors, parameters, rate and first trainable epoch."""
        optimizers = self._trainer.optimizers if self._trainer is not None else []
        return self.schedule.table(optimization.base_lr(optimizers[0]) if optimizers else self.lr)

    @property
    def _epoch(self) -> int | None:
        return self.current_epoch if self._trainer is not None else None

    def _enter_epoch(self) -> bool:
        """Set gradients and modes for the current epoch; return whether gradients changed."""
        self.schedule.keep_frozen_by_hand()
        changed = self.schedule.set_requires_grad(self._epoch)
        self.train()
        return changed

    def _begin_epoch(self) -> None:
        if self._enter_epoch():  # Lightning never calls .train() here
            distributed.wrap_again(self.trainer, self)
        optimization.set_train_mode(self.trainer.optimizers, training=True)

    # --- evaluation --------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the predictions of the main head."""
        self._evaluation_step(batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the predictions of the main head."""
        self._evaluation_step(batch, "test", dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Compute probabilities (N, classes) without a temperature; `Classifier` divides by that of the checkpoint."""
        return self(batches.images_of(batch, self.batch_keys)).softmax(dim=1)

    def _evaluation_step(self, batch: Any, split: str, dataloader_idx: int) -> None:
        images, labels = batches.unpack_batch(batch, self.batch_keys)
        name = batches.loader_name(split, dataloader_idx, self._trainer)
        self.metrics[name].update(self(images).float(), labels)

    def on_validation_start(self) -> None:
        """Let the optimizer show the weights that count, where it trains others."""
        optimization.set_train_mode(self.trainer.optimizers, training=False)

    def on_validation_end(self) -> None:
        """Let the optimizer go on."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            optimization.set_train_mode(self.trainer.optimizers, training=True)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, and keep the predictions for the record of the best epoch."""
        self.val_predictions = self.metrics["val"].predictions() if "val" in self.metrics.started("val") else None
        self._finish_evaluation("val")
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.metadata = checkpointing.validated_metadata(self, self.trainer)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._finish_evaluation("test")

    def _finish_evaluation(self, split: str) -> None:
        results, scalars = self.metrics.finish(split)
        self.results = {k: v for k, v in self.results.items() if k.split("/")[0] != split} | results
        self.log_dict(scalars, batch_size=1, prog_bar=split == "val")

    # --- checkpoints -------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where a run goes on; not for `load_from_checkpoint`, or where a checkpoint is only tested."""
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            upgrade(checkpoint)
            require_same_model(checkpoint, self)
            self._resume = ResumeState.from_entries(checkpoint, self.trainer.world_size)
            self.schedule.keep_started(self._resume.run.start_epochs, self._resume.epoch)
            self.schedule.frozen_by_hand.update(self._resume.run.frozen_by_hand)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors; those of a loss with weights of its own need not be there."""
        return super().load_state_dict(losses.with_own_tensors(state_dict, self), strict, assign)

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


require_super(FineTuner)
