"""From a configuration to objects: the only place that reads `cfg`, so that classes take plain arguments."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from finetune.checkpoints.restore import AtomicCheckpointIO
from finetune.cli import instantiate
from finetune.cli.instantiate import plain_values
from finetune.data.datamodule import ImageDataModule
from finetune.inference.classifier import Classifier, load
from finetune.io import files, paths
from finetune.models.weights import default_preprocess
from finetune.runtime import hardware, process
from finetune.runtime.console import IGNORED_WARNINGS, echo, field_line, make_console
from finetune.runtime.process import cpu_count
from finetune.training import resume_check
from finetune.training.callbacks import BestCheckpoint, LastCheckpoint, SeedEveryBatch
from finetune.training.history import History, monitor_mode
from finetune.training.module import FineTuner
from finetune.training.progress import EpochSummary, ProgressBar
from finetune.training.shutdown import GracefulShutdown


def prepare_process() -> None:
    """What a command sets for the whole process: no third-party noise, memory that is kept, TF32 in GPU's matrices.

    (In convolutions TF32 is on by default.)
    """
    quiet()
    hardware.keep_freed_memory()
    torch.set_float32_matmul_precision("high")


def quiet() -> None:
    """Keep known third-party noise off the terminal."""
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


def _factory(node: DictConfig, base: type | tuple[type, ...], *drop: str) -> partial[Any] | None:
    """What `_target_` names, as a partial without the keys that are ours; None where it names nothing."""
    values = {k: v for k, v in plain_values(node).items() if k not in drop}
    return instantiate.factory(values, base) if values.get("_target_") else None


def data_options(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of `ImageDataModule`."""
    options = {k: v for k, v in plain_values(cfg.data).items() if not (k == "batch_size" and v is None)}
    if options["dataset"] is not None:
        options["dataset"] = instantiate.factory(options["dataset"], Dataset)
    return {**options, "cache_dir": cfg.paths.cache_dir, "cache_gib": cfg.paths.cache_gib}


def make_data(cfg: DictConfig) -> ImageDataModule:
    """Find the images, with the preprocessing of the model's weights; nothing of the network is built yet."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    preprocess = default_preprocess(cfg.model.name, cfg.model.weights).updated(plain_values(cfg.model.preprocess))
    return ImageDataModule(**data_options(cfg), preprocess=preprocess, seed=cfg.seed).prepare()


def make_checked_data(cfg: DictConfig) -> ImageDataModule:
    """The data to look at, with the preprocessing of the model that may be trained on them; nothing is read yet."""
    preprocess = default_preprocess(cfg.model.name, cfg.model.weights).updated(plain_values(cfg.model.preprocess))
    return ImageDataModule(**data_options(cfg), preprocess=preprocess)


def make_classifier(cfg: DictConfig) -> Classifier:
    """The model of `ckpt`, where and how `device`, `precision` and `tta` say, with a line on it."""
    model = load(cfg.ckpt, cfg.device, cfg.precision, cfg.tta)
    epoch = model.module.about["validated"].get("epoch")
    trained = f", epoch {epoch + 1} of its run" if epoch is not None else ""
    text = f"{model.module.hparams['model']} for {len(model.classes)} classes{trained}; here on {model.device.type}, {model.precision}"
    echo(field_line("Model", text))
    return model


def make_evaluation_data(cfg: DictConfig) -> ImageDataModule:
    """Where to look for images to judge a model on; nothing is read yet.

    Raises:
        ValueError: a table is announced and not given.
    """
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.get().runtime.choices.get("data") == "csv" and cfg.data.root is None:
        raise ValueError("data.root is missing: give the table as data.root=...")
    return ImageDataModule(**data_options(cfg))


def _strategy(cfg: DictConfig) -> dict[str, Any]:
    return {**plain_values(cfg.strategy), "name": strategy_name()}


def strategy_name() -> str:
    """What `strategy=` was given."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.choices.get("strategy", "custom"))


def make_module(cfg: DictConfig, data: ImageDataModule) -> FineTuner:
    """The network with a head for the data's classes, and what trains it."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    module = FineTuner(
        cfg.model.name,
        data.classes,
        _strategy(cfg),
        weights=cfg.model.weights,
        head_init=cfg.model.head_init,
        preprocess=data.final_preprocess.to_dict(),
        optimizer=_factory(cfg.optimizer, Optimizer),
        scheduler=_factory(cfg.scheduler, LRScheduler, "warmup"),
        warmup=cfg.scheduler.warmup,
        monitor=cfg.monitor,
        label_smoothing=cfg.loss.label_smoothing,
        class_weights=data.class_weights() if cfg.loss.class_weights == "auto" else None,
        aux_weight=cfg.loss.aux,
        mixup=cfg.loss.mixup,
        cutmix=cfg.loss.cutmix,
    )
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    module.config = values
    _check_size(module)
    if cfg.trainer.compile is True:
        module.backbone.compile()
    return module


def _check_size(module: FineTuner) -> None:
    """Networks that cannot take the image size fail deep inside torch, in the first step."""
    size, family, name = module.preprocess.size, module.family, module.hparams["model"]
    own = int(getattr(module.backbone, "image_size", family.min_size))
    if family.fixed_size and size != own:
        raise ValueError(f"{name} takes images of {own} x {own} pixels only, got data.image_size={size}.")
    if size < family.min_size:
        raise ValueError(f"{name} needs images of at least {family.min_size} pixels, got data.image_size={size}.")


def make_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    """Lightning's Trainer with our record, checkpoints and seeds."""
    options = {k: v for k, v in plain_values(cfg.trainer).items() if k != "compile"}
    _check_devices(options["accelerator"], options["devices"])
    if options["precision"] == "auto":
        options["precision"] = hardware.native_precision(hardware.resolve_accelerator(options["accelerator"]))
    history = History(folder / "metrics.csv", cfg.monitor)
    beside = paths.last_checkpoint_path(str(cfg.ckpt_path)).parent if cfg.ckpt_path is not None else None
    bar = [ProgressBar()] if make_console().is_terminal else []
    callbacks: list[Callback] = [
        SeedEveryBatch(cfg.seed),
        *bar,
        *(make_callback(c) for c in plain_values(cfg.get("callbacks")).values()),
        history,
        EpochSummary(cfg.monitor, history),
        GracefulShutdown(folder / "checkpoints" / "last.ckpt"),
        BestCheckpoint(folder / "checkpoints", cfg.monitor, beside),
        LastCheckpoint(folder / "checkpoints"),
    ]
    make = instantiate.factory(options, Trainer)
    try:
        trainer: Trainer = make(
            callbacks=callbacks,
            logger=_logger(cfg),
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # ours neither pads nor forgets the epoch
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"trainer: {error}") from error
    return trainer


PROCESSES = 8
"""That may always compute on a CPU, however few its cores are."""


def _check_devices(accelerator: str, devices: Any) -> None:
    """Lightning would name its own arguments, and start any number of processes on a CPU."""
    found = hardware.resolve_accelerator(accelerator)
    if accelerator in ("cuda", "gpu", "mps") and found == "cpu":
        raise ValueError(
            f"trainer.accelerator={accelerator}: torch {torch.__version__} finds no such device here; trainer=auto takes "
            "what there is, trainer=cpu the processor."
        )
    if found == "cpu" and isinstance(devices, int) and devices > max(PROCESSES, cpu_count()):
        raise ValueError(f"trainer.devices={devices}: that many processes do not fit on {cpu_count()} processor cores.")


def make_callback(spec: dict[str, Any]) -> Callback:
    """A callback of the configuration; `mode: auto` follows from what it monitors."""
    if spec.get("mode") == "auto":
        spec = {**spec, "mode": monitor_mode(spec["monitor"])}
    made: Callback = instantiate.factory(spec, Callback)()
    return made


def _logger(cfg: DictConfig) -> Logger | bool:
    make = _factory(cfg.logger, Logger)
    try:
        return make() if make else False
    except ImportError as error:
        raise ValueError(
            f"{make.func.__name__ if make else ''} needs a package that is not installed ({error}). "
            "The extras are tensorboard, wandb and mlflow: pip install 'finetune-lightning[NAME]'."
        ) from error


def resume_path(cfg: DictConfig, module: FineTuner, data: ImageDataModule, folder: Path) -> Path | None:
    """The checkpoint to go on from, after a look at whether it belongs to this configuration.

    Args:
        folder: of the run; one that was requeued goes on with what it saved there itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of a run, or of another run.
    """
    path = None if cfg.ckpt_path is None else paths.last_checkpoint_path(str(cfg.ckpt_path))
    if process.is_requeued():
        first = Path(str(folder).removesuffix(f"_rank{process.process_rank()}"))
        own = [*first.glob("hpc_ckpt_*.ckpt"), *first.glob(str(paths.LAST_CHECKPOINT))]
        path = max(own, key=lambda file: file.stat().st_mtime, default=path)
    if path is None:
        return None
    resume_check.check_resumable(path, module, data.description())
    last = folder / paths.LAST_CHECKPOINT
    if process.is_first_process() and not last.exists():
        files.copy_file(path, last)  # until this run has saved something itself
    return path
