"""The LightningModule: a backbone, a strategy, one step for training, validation and test."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import lightning
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from finetune.checkpoints import format, restore
from finetune.data.datamodule import ImageDataModule
from finetune.images.transforms import batch_augmentation
from finetune.metrics import classification
from finetune.models import partition
from finetune.models.backbone import Backbone, with_preprocess, wrap_module
from finetune.models.fusion import fuse_conv_bn
from finetune.models.network import channels_last
from finetune.runtime import hardware
from finetune.training import feature_cache, optimization, resume, schedule
from finetune.training.distributed import DIVERGED_HINT, NAMED_FILES
from finetune.training.feature_store import FeatureBatch
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

    `module.backbone` is the network under its torchvision names, `module.head` its new last layer,
    `module.classes` the class names, `module.preprocess` what images need. After validation and test,
    `module.results["val"]` holds every metric, the per-class ones included.
    """

    def __init__(
        self,
        model: str | nn.Module | Backbone = "resnet18",
        classes: Sequence[str] | int = (),
        strategy: str | Mapping[str, Any] | Strategy = "feature_extract",
        *,
        weights: str | None = "default",
        head: str | None = None,
        tail: str | None = None,
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
    ) -> None:
        """Build the network and put a head for `classes` on it.

        Args:
            model: a name of the table (`python -m finetune.models`), a Backbone, or a network of your own.
            classes: class names in the order of the labels; a number names them "0", "1", ...
            strategy: a name of `conf/strategy/`, a mapping of Strategy's fields, or a Strategy.
            weights: "default", "none", a name of the weights enum, or a local file. For a `model` given by name.
            head: path of the last Linear or Conv2d, for a network of your own.
            tail: path of the first module that is random in training, for a network of your own; the head if None.
            head_init: "default", "xavier_uniform", "xavier_normal" or "zero".
            preprocess: fields of `Preprocess` that differ from the weights' own.
            optimizer: called with parameter groups, for example `partial(torch.optim.AdamW, lr=1e-3)`. Each group's
                rate is the optimizer's times the group's. None: the module cannot be trained until one is set.
            scheduler: called with the optimizer; `max_lr`, `total_steps` and `T_max` are filled in where it takes them
                and they are not given, and then it steps every batch, else every epoch.
            warmup: epochs of linear warm-up of all rates.
            monitor: what ReduceLROnPlateau looks at.
            label_smoothing: share of the target spread over all classes, in 0..1.
            class_weights: a weight per class for the training loss.
            aux_weight: weight of each auxiliary loss; None is the family's own.
            mixup: alpha of MixUp, 0 is off. Training batches only.
            cutmix: alpha of CutMix, 0 is off; with both, one is drawn per batch.
            transform_input: for inception and googlenet, see `Family`; None follows the weights.

        Raises:
            ValueError: an unknown name, a strategy that does not fit the network, fewer than two classes.
            FileNotFoundError: weights that are not there and cannot be downloaded.
        """
        super().__init__()
        self.strategy = Strategy.load(strategy)
        self.classes = _class_names(classes)
        backbone = self._make_backbone(
            model,
            weights if self.strategy.pretrained else "none",
            head,
            tail,
            transform_input,
            (preprocess or {}).get("size"),
        )
        backbone = with_preprocess(backbone, preprocess)
        backbone.replace_head(len(self.classes), head_init)
        self.family, self.preprocess, self.source = backbone.family, backbone.preprocess, backbone.weights_source
        # channels_last doubles the speed of convolutions on CPUs and changes nothing else
        self.backbone: nn.Module = backbone.network.to(memory_format=torch.channels_last)
        self.plan = schedule.assign(self.strategy, self.backbone, backbone.head_names)
        schedule.names_before(self.backbone, self.family.feature_boundary)  # raises here, not in the first epoch
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self.warmup, self.monitor = warmup, monitor
        self.aux_weight = self.family.aux_weight if aux_weight is None else aux_weight
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self._set_class_weights(class_weights)
        self.mix = batch_augmentation(len(self.classes), mixup, cutmix)
        self.results: dict[str, dict[str, Any]] = {}
        self.answers: tuple[Tensor, Tensor] | None = None
        """Of the last validation: probabilities (N, classes) and labels (N,)."""
        self.config: Mapping[str, Any] = {}
        """The configuration that it was made from, plain values; checkpoints keep it."""
        self.about: dict[str, Any] = {}
        """What the checkpoint that it was loaded from says of the run, see `checkpoint.read`."""
        self._validated: dict[str, Any] = {}
        """How and when `results["val"]` were computed, see `checkpoint.read`."""
        self._cut = self.family.feature_boundary
        """Where features enter in place of images."""
        self._evaluates_as: Mapping[str, Any] = {}
        self._twin: list[Any] = []  # in a list: it is no part of this module
        self._resumed: Mapping[str, Any] = {}
        """The checkpoint that this fit goes on from, without its tensors of weights."""
        self.rates: dict[str, float] = {}
        """The rate of each group in the last step, ramps included."""
        self._make_metrics()
        # What `load_from_checkpoint` gives back to this constructor: plain values, and no weights to fetch.
        self.save_hyperparameters(
            {
                "model": backbone.name,
                "classes": self.classes,
                "strategy": self.strategy.to_dict(),
                "weights": "none",
                "head": self.family.head,
                "tail": self.family.feature_boundary,
                "preprocess": self.preprocess.to_dict(),
                "optimizer": None,
                "label_smoothing": float(label_smoothing),
                "class_weights": None if class_weights is None else [float(w) for w in class_weights],
                "aux_weight": float(self.aux_weight),
                "mixup": float(mixup),
                "cutmix": float(cutmix),
                "transform_input": backbone.transform_input,
                "source": self.source,
            },
            logger=False,
        )
        self._enter_epoch()

    @staticmethod
    def _make_backbone(
        model: str | nn.Module | Backbone,
        weights: str | None,
        head: str | None,
        tail: str | None,
        transform_input: bool | None,
        size: int | None,
    ) -> Backbone:
        if isinstance(model, Backbone):
            return model
        if isinstance(model, str):
            if model == "custom":
                raise ValueError(
                    "This checkpoint is of a network of your own; give it: load_from_checkpoint(path, model=network)."
                )
            return Backbone.create(model, weights, transform_input, size)
        if head is None:
            layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            raise ValueError(
                f"Say which layer of {type(model).__name__} is its head, for example head={layers[-1:] or ['fc']}."
            )
        return wrap_module(model, head, tail)

    def _set_class_weights(self, class_weights: Sequence[float] | None) -> None:
        if class_weights is None:
            return
        if len(class_weights) != len(self.classes):
            raise ValueError(f"class_weights has {len(class_weights)} values for {len(self.classes)} classes.")
        # not persistent: checkpoints hold the network and nothing else
        self.criterion.register_buffer("weight", torch.tensor(class_weights, dtype=torch.float), persistent=False)

    def _make_metrics(self) -> None:
        n = len(self.classes)
        self.train_loss, self.train_acc = MeanMetric(), MulticlassAccuracy(n, average="micro")
        one = classification.make_metrics(n)
        self.metrics = nn.ModuleDict({"val": one, "test": one.clone()})
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})

    # --- the network -------------------------------------------------------------------------------------------

    @property
    def head(self) -> nn.Module:
        """The new last layer."""
        return self.backbone.get_submodule(self.family.head)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, classes) of the main head.

        Args:
            images: uint8 pixels, or floats that were normalised as `preprocess` says; or several views of each
                image (N, V, 3, H, W), whose probabilities are averaged.
        """
        if images.ndim == 5:
            n, views = images.shape[:2]
            each = self(images.flatten(0, 1)).float().log_softmax(dim=1).view(n, views, -1)
            return each.logsumexp(dim=1) - math.log(views)
        images = self._normalized(images)
        if self._evaluates_as.get("features_before") and not self.training:
            return self._from_cut(self._before_cut(images))
        if self._exact_head():
            return self._from_head(partition.forward_to(self.backbone, self.family.head, channels_last(images)))
        return self._outputs(images)[0]

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to what enters the head (N, D); maps (SqueezeNet's) are averaged over their pixels.

        Args:
            images: as for `forward`.
        """
        return self.pooled(partition.forward_to(self.backbone, self.family.head, self._normalized(images)))

    def pooled(self, values: Tensor) -> Tensor:
        """What enters the head as rows (N, D) float32."""
        spatial = values.ndim == 4 and isinstance(self.head, nn.Conv2d)
        return values.float().mean(dim=(2, 3)) if spatial else values.float().flatten(1)

    def evaluate_as(self, validated: Mapping[str, Any]) -> None:
        """From now on, in evaluation mode, compute as the epochs of a run did that were validated on kept features.

        BatchNorm is folded there: the same function, rounded differently, which in 16 bits can be seen.

        Args:
            validated: of a checkpoint, see `checkpoint.read`.
        """
        if cut := validated.get("features_before"):
            try:
                self.backbone.get_submodule(cut)
            except AttributeError as error:
                raise ValueError(
                    f"The network has no {cut}, at which its checkpoint says that features entered."
                ) from error
            self._cut = cut
        self._evaluates_as, self._validated, self._twin = validated, dict(validated), []

    def _before_cut(self, images: Tensor) -> Tensor:
        cut, dtype = self._evaluates_as["features_before"], getattr(torch, self._evaluates_as["features_dtype"])
        where = (self.device, self.dtype)
        if not self._twin or self._twin[0] != where:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                size = self.preprocess.size
                generator = torch.Generator().manual_seed(0)
                noise = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
                self._twin = [where, fuse_conv_bn(self.backbone, cut, self._normalized(noise.to(self.device)))]
        return partition.forward_to(self._twin[1], cut, images).to(dtype).to(self.dtype)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.load_state_dict`."""
        self._twin = []
        return super().load_state_dict(*args, **kwargs)

    def _normalized(self, images: Tensor) -> Tensor:
        return self.preprocess.normalize(images).to(self.dtype) if images.dtype == torch.uint8 else images

    def _outputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Main logits, and those of auxiliary heads where the network gives them."""
        out = self.backbone(channels_last(images))
        logits, *aux = out if isinstance(out, tuple) else (out,)
        return logits, aux

    def _from_cut(self, values: Tensor) -> Tensor:
        """From what enters the cut to logits."""
        modules = partition.modules_after(self.backbone, self._cut)
        if not self._exact_head():
            return partition.logits_from(modules, values)
        return self._from_head(partition.forward_from(modules[: modules.index(self.head)], values))

    def _exact_head(self) -> bool:
        """Whether the head computes in 32 bits though the rest has 16: in evaluation, where bf16's logits, of three
        digits, would tie. For networks of the table, of which it is known what follows the head."""
        known = self.hparams["model"] != "custom" and self.family.build is None
        return known and not self.training and torch.is_autocast_enabled(self.device.type)

    def _from_head(self, values: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return partition.logits_from(partition.modules_after(self.backbone, self.family.head), values.float())

    # --- what learns when --------------------------------------------------------------------------------------

    @property
    def _max_epochs(self) -> int | None:
        """None for a run without an end, and outside a Trainer."""
        given = self._trainer.max_epochs if self._trainer is not None else None
        return given if given is not None and given >= 0 else None

    def _epoch(self) -> int:
        return self.current_epoch if self._trainer is not None else 0

    def trunk_moves(self, epoch: int) -> bool:
        """Whether an epoch changes anything before the tail."""
        return schedule.trunk_is_trainable(
            self.plan, self.backbone, epoch, self._max_epochs or sys.maxsize, self.family.feature_boundary
        )

    def ever_trunk_moves(self) -> bool:
        """Whether anything before the tail changes in the course of the run."""
        return self.trunk_moves((self._max_epochs or sys.maxsize) - 1)  # groups start and never stop

    def plain_epochs(self, max_epochs: int | None) -> int:
        """With `augment="auto"`, the first epochs in which images are not augmented: the trunk is frozen.

        A crop drawn at random is worth more than the plain one to a trunk that learns, and less to a head alone (on
        hymenoptera 0.90 against 0.93); with `strategy.views` above 1 it was asked for.
        """
        if self.strategy.views > 1:
            return 0
        first = schedule.first_unfreeze_epoch(
            self.plan, self.backbone, schedule.end_of(max_epochs), self.family.feature_boundary
        )
        return sys.maxsize if first is None else first

    def learning_names(self) -> set[str]:
        """Names of the network's parameters that change in the course of the run."""
        last = (self._max_epochs or sys.maxsize) - 1
        return schedule.trainable_names(self.plan, last, last + 1) - set(self._idle(last))

    def _idle(self, epoch: int) -> list[str]:
        """Auxiliary heads get no loss while nothing before them learns: they could not change the result."""
        if not self.family.aux or (self.trunk_moves(epoch) and self.aux_weight > 0):
            return []
        return [
            n
            for n, _ in self.backbone.named_parameters()
            if n.startswith(tuple(f"{p}." for p in self.family.aux_roots))
        ]

    def _enter_epoch(self) -> bool:
        """Bring gradients and modes into the state of the current epoch; says whether gradients changed."""
        epoch, idle = self._epoch(), self._idle(self._epoch())
        changed = schedule.set_requires_grad(self.plan, self.backbone, epoch, self._max_epochs or sys.maxsize, idle)
        self.train()
        return changed

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode and hasattr(self, "plan"):
            epoch = self._epoch()
            schedule.set_modes(
                self.plan, self.backbone, epoch, self._max_epochs or sys.maxsize, self.family.feature_boundary
            )
            if self.family.aux and self._idle(epoch):
                self.backbone.training = False  # the flag of the root alone: it decides whether auxiliary heads run
        return self

    def on_fit_start(self) -> None:
        for group in self.plan.groups:
            group.first_epoch(self._max_epochs)  # a share of a run without an end is an error
        self._evaluates_as, self._twin = {}, []
        self._enter_epoch()
        self._print_table()
        # Lightning restores the loops, and with them the epoch, only after this hook
        resumes_at = resume.resume_epoch(self._resumed) if self._resumed else 0
        self._cut = feature_cache.prepare_caches(self, self.trainer, resumes_at) or self._cut
        # A scheduler that asked for the number of steps has had the loader made: without features, and before a
        # resumed run knew its epoch. Made anew as Lightning's own tuner does it.
        if self.trainer.fit_loop._combined_loader is not None:
            self.trainer.fit_loop._combined_loader.reset()
            self.trainer.fit_loop._combined_loader = None

    def on_train_start(self) -> None:
        """In a resumed run: what Lightning restores after `on_fit_start`, or not at all."""
        resumed, self._resumed = self._resumed, {}
        if not resumed:
            return
        self.rates = dict(resumed.get("rates") or {})
        self._begin_epoch()  # in the middle of an epoch, nobody calls `on_train_epoch_start`
        resume.restore_metric_state({"loss": self.train_loss, "acc": self.train_acc}, resumed, self.global_rank == 0)
        if (planned := resumed.get("max_epochs")) != self._max_epochs:
            resume.rescale_scheduler(self, planned, self._max_epochs, self._total_steps)

    def on_train_epoch_start(self) -> None:
        self.train_loss.reset()
        self.train_acc.reset()
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        # Lightning never calls .train() here, and DDP has only wrapped what learned when it was set up
        if self._enter_epoch() and self.trainer.world_size > 1 and self.trainer.strategy.model is not None:
            strategy: Any = self.trainer.strategy
            if hasattr(strategy, "_setup_model") and strategy.model is not self:
                strategy.model = strategy._setup_model(self)

    @rank_zero_only
    def _print_table(self) -> None:
        from finetune.runtime.console import print_table

        rows = self.strategy_table()
        print_table(f"Strategy {self.strategy.name}", ["group", "tensors", "parameters", "rate", "learns from"], rows)

    def strategy_table(self) -> list[list[str]]:
        """Rows of group, tensors, parameters, rate and start."""
        off = self._idle((self._max_epochs or 1) - 1)
        return schedule.table(self.plan, self.backbone, self._base_lr(), self._max_epochs, off)

    # --- optimizer ---------------------------------------------------------------------------------------------

    def _base_lr(self) -> float:
        optimizer = self._trainer.optimizers[0] if self._trainer is not None and self._trainer.optimizers else None
        return float((optimizer or self._new_optimizer()).defaults["lr"])

    def _new_optimizer(self) -> Optimizer:
        return optimization.make_optimizer(self._make_optimizer, self.plan, self.backbone)

    def configure_optimizers(self) -> Any:
        """One optimizer with all groups from the start, so that schedulers, checkpoints and resuming need no care."""
        optimizer = self._new_optimizer()
        if self._make_scheduler is None:
            return optimizer
        made = optimization.make_scheduler(self._make_scheduler, optimizer, self.monitor, self._total_steps)
        scheduler, interval = made
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": interval,
                "monitor": self.monitor,
                # a plateau is looked for in `on_train_epoch_end`
                "frequency": sys.maxsize if isinstance(scheduler, ReduceLROnPlateau) else 1,
            },
        }

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError("This scheduler needs to know the end of the run: set trainer.max_epochs.")
        return max(1, int(steps))

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step with each group's rate times its ramp (late start, warm-up)."""
        now = epoch + (batch_idx + 1) / max(1, int(self.trainer.num_training_batches))
        factors = optimization.ramps(self.plan, epoch, now, self.warmup, self._max_epochs)
        with optimization.ramped(optimizer, factors) as self.rates:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    # --- steps -------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Main loss plus the weighted auxiliary ones."""
        labels = targets = batch[1]
        if isinstance(batch, FeatureBatch):
            logits, aux = self._from_cut(batch.values), list[Tensor]()
        else:
            images = self._normalized(batch[0])
            if self.mix is not None:
                images, targets = self.mix(images, labels)
            logits, aux = self._outputs(images)
        loss: Tensor = self.criterion(logits, targets)
        for extra in aux:
            loss = loss + self.aux_weight * self.criterion(extra, targets)
        if not torch.isfinite(loss):
            raise ValueError(f"The loss is {loss.item()} {self._where(batch_idx)} {DIVERGED_HINT}")
        # with MixUp or CutMix, accuracy is against the larger share of each image
        hard = targets if targets.ndim == 1 else targets.argmax(dim=1)
        loss, images_seen = self._of_all(loss, targets)
        self.train_loss.update(loss.detach(), weight=images_seen)
        self.train_acc.update(logits.detach(), hard)
        return loss

    def _of_all(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | int]:
        """A mean over this process's images so scaled that the mean over all processes is that over all their images.

        And the number of images that it then stands for. Processes differ in the last batch of an `ImageDataModule`,
        and in the weights of their images' classes.
        """
        weights = self.criterion.weight if targets.ndim == 1 else None
        if self._trainer is None or self.trainer.world_size == 1:
            return loss, len(targets)
        if weights is None and not (self.trainer.is_last_batch and self._data() is not None):
            return loss, len(targets)
        exact = torch.promote_types(loss.dtype, torch.float32)  # in 16 bits these counts would be rounded
        counted = len(targets) if weights is None else float(weights[targets].sum(dtype=exact))
        mine = torch.tensor([counted, len(targets)], device=loss.device, dtype=exact)
        average: Any = self.trainer.strategy.reduce(mine.clone(), reduce_op="mean")
        return loss * (mine[0] / average[0]), average[1]

    def _data(self) -> ImageDataModule | None:
        data = getattr(self._trainer, "datamodule", None)
        return data if isinstance(data, ImageDataModule) else None

    def _where(self, batch_idx: int) -> str:
        """A step in words: its epoch and batch, its rates, and the files of the batch."""
        rates = ", ".join(f"{o['name']} {o['lr']:.3g}" for o in self.trainer.optimizers[0].param_groups)
        text = f"in epoch {self.current_epoch + 1}, batch {batch_idx + 1} (rates: {rates})"
        data = self._data()
        if data is None:
            return f"{text}."
        names = data.batch_keys(batch_idx)
        more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
        return f"{text}, with the images {', '.join(names[:NAMED_FILES])}{more}."

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # not by `load_from_checkpoint`, or where a checkpoint is only tested
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._resumed = {key: checkpoint.get(key) for key in ("loops", "max_epochs", "starts", "sums", "rates")}
            was, now = checkpoint.get("processes", 1), self.trainer.world_size
            if was != now and resume.resume_batches(self._resumed):
                raise ValueError(f"The checkpoint was written within an epoch by {was} processes, and there are {now}.")
            resume.keep_starts(self.plan, self._resumed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["max_epochs"] = self._max_epochs
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            checkpoint["starts"] = [group.first_epoch(self._max_epochs) for group in self.plan.groups]
            broken = [name for name, value in checkpoint["state_dict"].items() if not torch.isfinite(value).all()]
            if broken:
                raise ValueError(f"After epoch {self.current_epoch + 1} {broken[0]} is not finite. {DIVERGED_HINT}")
            checkpoint["processes"] = self.trainer.world_size
            checkpoint["rates"] = dict(self.rates)
            checkpoint["sums"] = resume.metric_state({"loss": self.train_loss, "acc": self.train_acc})
        checkpoint[format.METADATA] = self._description()

    def _description(self) -> dict[str, Any]:
        """What `checkpoint.read` gives back."""
        same = {"format": format.FORMAT, "versions": hardware.installed_versions()}
        if self._trainer is None:
            return {"config": dict(self.config), "data": {}, "validated": {}, **self.about, **same}
        data = self._data()
        validated = self._validated
        if validated.get("step") != self._trainer.global_step:  # it has learned since
            validated = {**validated, "results": {}}
        described = data.description() if data is not None else {}
        return {**same, "config": dict(self.config), "data": described, "validated": validated}

    def save(self, path: str | Path) -> None:
        """Write a checkpoint without the state of a run: what `finetune.load` and `load_from_checkpoint` need."""
        content: dict[str, Any] = {
            "state_dict": self.state_dict(),
            "hyper_parameters": dict(self.hparams),
            "pytorch-lightning_version": lightning.__version__,
        }
        self.on_save_checkpoint(content)
        restore.AtomicCheckpointIO().save_checkpoint(content, path)

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
        """A module as it was saved, from the file alone: no network, no configuration, no pretrained weights.

        Args:
            checkpoint_path: a file of ours.
            map_location: the device; None is the CPU.
            hparams_file: of Lightning's own method, and not needed.
            strict: see `changes`.
            weights_only: files are never read otherwise.
            changes: arguments of the constructor in place of those that were saved, `optimizer=` for example; with
                `classes`, `strict=False` leaves the new head as it is.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, holds code, or is not of ours.
        """
        if hparams_file is not None or not weights_only:
            raise ValueError("A checkpoint needs no hparams_file, and is always read with weights_only=True.")
        stored = format.read_checkpoint(checkpoint_path)
        module = restore.rebuild(cls, stored, checkpoint_path, strict, changes)
        module.source = module.hparams["source"] = str(stored["hyper_parameters"].get("source"))
        module.about, module.config = stored[format.METADATA], stored[format.METADATA]["config"]
        module.on_load_checkpoint(stored)
        return module.to(map_location or "cpu").eval()

    def on_train_end(self) -> None:
        """Over several processes: all must have learned the same."""
        if self.trainer.world_size == 1:
            return
        mine = torch.stack([p.detach().double().sum() for p in self.backbone.parameters()])
        everyone: Any = self.all_gather(mine)
        if not bool((everyone == everyone[0]).all()):
            raise RuntimeError("The weights differ between processes: this run is void. Please report it.")

    def on_train_epoch_end(self) -> None:
        # here and not in the steps, so that an epoch that was interrupted and resumed counts all of them
        trained = {"train/loss": self.train_loss, "train/acc": self.train_acc}
        # an epoch in which Lightning had nothing left to do has none; computing is for all processes or for none
        counts = self.trainer.strategy.reduce_boolean_decision(self.train_loss.update_called, all=False)
        counted = {name: metric.compute() for name, metric in trained.items()} if counts else {}
        self.log_dict(counted)  # in every process: schedulers and checkpoints may look at them
        self.log_dict(self.rates, rank_zero_only=True)
        self._step_plateau()

    def _step_plateau(self) -> None:
        """Before the checkpoint of the epoch is written, and also in an epoch that was resumed: Lightning does neither."""
        scheduler = self.lr_schedulers()
        judged = (self.current_epoch + 1) % (self.trainer.check_val_every_n_epoch or 1) == 0
        if isinstance(scheduler, ReduceLROnPlateau) and (judged or not self.monitor.startswith("val/")):
            if self.monitor not in self.trainer.callback_metrics:
                known = ", ".join(sorted(self.trainer.callback_metrics))
                raise ValueError(
                    f"ReduceLROnPlateau looks at {self.monitor}, which is not measured; there are {known}."
                )
            scheduler.step(self.trainer.callback_metrics[self.monitor])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions of the main head."""
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions of the main head."""
        self._evaluation_step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities (N, classes)."""
        images = batch[0] if isinstance(batch, tuple | list) else batch
        return self(images).softmax(dim=1)

    def _evaluation_step(self, batch: Batch, split: str) -> None:
        labels = batch[1]
        logits = (self._from_cut(batch.values) if isinstance(batch, FeatureBatch) else self(batch[0])).float()
        self.judge(logits, labels, split)

    def judge(self, logits: Tensor, labels: Tensor, split: str) -> None:
        """Count a batch of logits (N, classes) against labels (N,), until `conclude`."""
        # the plain log loss, without smoothing and weights, so that runs can be compared
        loss: Any = self.losses[split]
        counted: Any = self.metrics[split]
        loss.update(nn.functional.cross_entropy(logits, labels), weight=len(labels))
        counted.update(logits.softmax(dim=1), labels)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def _finish_evaluation(self, split: str) -> None:
        if split == "val":
            self.answers = classification.collect_predictions(self.metrics[split])
        values = self.conclude(split)
        if split == "val" and self.trainer.state.fn == TrainerFn.FITTING:
            self._validated = self._how_validated(values)
        scalars = {f"{split}/{k}": v for k, v in values.items() if v.ndim == 0}
        self.log_dict(scalars, batch_size=1, prog_bar=split == "val")

    def _how_validated(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        trainer, data = self.trainer, getattr(self.trainer, "datamodule", None)
        cached = getattr(data, "cached", None)
        return {
            "epoch": self.current_epoch,
            "step": trainer.global_step,
            "precision": str(trainer.precision),
            "device": trainer.strategy.root_device.type,
            "processes": trainer.world_size,
            "batch_size": getattr(data, "evaluation_batch", None),
            "features_before": self._cut if cached is not None and self.current_epoch < cached.until else None,
            "features_dtype": self.strategy.cache_dtype,
            "results": {k: v.item() for k, v in values.items() if v.ndim == 0},
        }

    def conclude(self, split: str) -> dict[str, Tensor]:
        """Every metric of what was judged, which `results[split]` keeps too; what comes next is judged anew."""
        counted: Any = self.metrics[split]
        loss: Any = self.losses[split]
        values: dict[str, Tensor] = {"loss": loss.compute(), **classification.compute_metrics(counted)}
        counted.reset()
        loss.reset()
        self.results[split] = {k: v.tolist() for k, v in values.items()}
        return values


def _class_names(classes: Sequence[str] | int) -> list[str]:
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else [str(c) for c in classes]
    if len(names) < 2:
        raise ValueError(f"A classifier needs at least two classes, got {names}. Pass classes=data.classes.")
    if len(set(names)) < len(names):
        raise ValueError(f"Class names must differ, got {names}.")
    return names
