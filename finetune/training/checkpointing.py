"""Fill in what a FineTuner's checkpoint says, and load modules from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from finetune.checkpoints.format import METADATA, read_checkpoint
from finetune.checkpoints.metadata import (
    CalibrationRecord,
    CheckpointMetadata,
    DataRecord,
    ModelRecord,
    RunRecord,
    ValidationRecord,
)
from finetune.checkpoints.restore import AtomicCheckpointIO, metadata_for, rebuild
from finetune.models.head_layers import head_record
from finetune.runtime import hardware
from finetune.training.calibrating import held_out_calibration, solved_calibration
from finetune.training.distributed import DIVERGED_HINT
from finetune.training.interface import TrainableClassifier
from finetune.training.losses import loss_name

M = TypeVar("M", bound=LightningModule)


def model_record(
    module: TrainableClassifier, class_weights: list[float] | None, label_smoothing: float, mixup: float, cutmix: float
) -> ModelRecord:
    """Return the arguments from which a module is built again; those that it does not keep itself are given."""
    return ModelRecord(
        module.model_name, module.classes, module.strategy.to_dict(), head=head_record(module.backbone, module.family.head, module._backbone.has_own_head),
        feature_boundary=module.family.feature_boundary, preprocess=module.preprocess.to_dict(),
        aux_weight=module.schedule.aux_weight, transform_input=module.transform_input,
        in_channels=module.preprocess.channels, class_weights=class_weights, label_smoothing=float(label_smoothing),
        mixup=float(mixup), cutmix=float(cutmix), model_options=module._backbone.options,
    )  # fmt: skip


def validated_metadata(module: Any, trainer: Trainer) -> CheckpointMetadata:
    """Return a module's metadata with the validation that has just ended in a training: when, how, and with what result."""
    validation = ValidationRecord(
        epoch=trainer.current_epoch + 1,
        step=trainer.global_step,
        precision=str(trainer.precision),
        device=trainer.strategy.root_device.type,
        processes=trainer.world_size,
        batch_size=getattr(getattr(trainer, "datamodule", None), "evaluation_batch", None),
        results={name: value for name, value in module.results.get("val", {}).items() if isinstance(value, float)},
    )
    return replace(module.metadata, validation=validation, calibration=held_out_calibration(module, trainer))


def add_metadata(checkpoint: dict[str, Any], module: TrainableClassifier, trainer: Trainer | None) -> None:
    """Add to Lightning's entries what a checkpoint says of itself, and of the run where there is one.

    Args:
        checkpoint: Lightning's entries, changed in place.
        module: whose checkpoint it is.
        trainer: None outside of a training.

    Raises:
        ValueError: a tensor is not finite, or a hyper-parameter is no plain value.
    """
    for name, value in checkpoint.get("hyper_parameters", {}).items():
        if not _is_plain(value):
            raise ValueError(
                f"The hyper-parameter {name} is a {type(value).__name__}, which a checkpoint cannot hold: "
                f'self.save_hyperparameters(ignore=["{name}"]).'
            )
    metadata = replace(
        module.metadata, versions=hardware.installed_versions(), weights_source=module.weights_source,
        loss=loss_name(module.criterion), run=None,
    )  # fmt: skip
    if trainer is not None:
        validation, calibration = metadata.validation, metadata.calibration
        # of other weights: they have changed since, or it was their average, which this file does not hold
        other = getattr(module, "average_was_validated", False) and "averaging_state" not in checkpoint
        if validation.step != trainer.global_step or other:
            validation = replace(validation, results={})
            calibration = solved_calibration(module, trainer) or CalibrationRecord()
        record = getattr(getattr(trainer, "datamodule", None), "record", DataRecord)  # of an ImageDataModule
        metadata = replace(metadata, data=record(), validation=validation, calibration=calibration)
        if trainer.state.fn == TrainerFn.FITTING:
            _require_finite(checkpoint["state_dict"], trainer)
            metadata = replace(metadata, run=_run_record(module, trainer))
    checkpoint[METADATA] = metadata.to_dict()


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list | tuple | set):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def _run_record(module: TrainableClassifier, trainer: Trainer) -> RunRecord:
    return RunRecord(
        max_epochs=module.schedule.max_epochs,
        start_epochs=module.schedule.start_epochs(),
        processes=trainer.world_size,
        rates=dict(module.rates),
        metric_state=module.train_metrics.metric_state(),
        frozen_by_hand=sorted(module.schedule.frozen_by_hand),
    )


def _require_finite(state_dict: Mapping[str, Tensor], trainer: Trainer) -> None:
    broken = [name for name, value in state_dict.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"After epoch {trainer.current_epoch + 1} {broken[0]} is not finite. {DIVERGED_HINT}")


def save_weights(module: TrainableClassifier, path: str | Path) -> None:
    """Write a checkpoint without the state of a run."""
    content: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    module.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, path)


def load_module(cls: type[M], path: str | Path, device: Any, strict: bool, changes: Mapping[str, Any]) -> M:
    """Load a module in evaluation mode from a file alone; see `FineTuner.load_from_checkpoint`."""
    checkpoint = read_checkpoint(path)
    module: Any = rebuild(cls, checkpoint, path, strict, changes)
    module.weights_source = checkpoint.metadata.weights_source
    module.metadata = metadata_for(checkpoint, module.classes, strict)
    module.on_load_checkpoint(dict(checkpoint.entries))
    module.to(device or "cpu").eval()
    loaded: M = module
    return loaded
