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

from finetune import config, machine
from finetune.backbones import default_preprocess
from finetune.callbacks import Bar, BestCheckpoint, EpochLines, History, SeedEveryBatch, last_checkpoint, mode_of
from finetune.checkpoint import AtomicCheckpointIO, read_tensors
from finetune.classifier import Classifier, load
from finetune.console import IGNORED_WARNINGS, console, entry, say
from finetune.data import ImageDataModule
from finetune.module import FineTuner
from finetune.strategy import Strategy


def prepare_process() -> None:
    """What a command sets for the whole process: no third-party noise, memory that is kept, TF32 in GPU's matrices.

    (In convolutions TF32 is on by default.)
    """
    quiet()
    machine.keep_freed_memory()
    torch.set_float32_matmul_precision("high")


def quiet() -> None:
    """Keep known third-party noise off the terminal."""
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


def _plain(node: Any) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else {}
    return dict(values)


def _factory(node: DictConfig, base: type | tuple[type, ...], *drop: str) -> partial[Any] | None:
    """What `_target_` names, as a partial without the keys that are ours; None where it names nothing."""
    values = {k: v for k, v in _plain(node).items() if k not in drop}
    return config.factory(values, base) if values.get("_target_") else None


def data_options(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of `ImageDataModule`."""
    options = {k: v for k, v in _plain(cfg.data).items() if not (k == "batch_size" and v is None)}
    if options["dataset"] is not None:
        options["dataset"] = config.factory(options["dataset"], Dataset)
    return {**options, "cache_dir": cfg.paths.cache_dir, "cache_gib": cfg.paths.cache_gib}


def make_data(cfg: DictConfig) -> ImageDataModule:
    """Find the images, with the preprocessing of the model's weights; nothing of the network is built yet."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    preprocess = default_preprocess(cfg.model.name, cfg.model.weights).updated(_plain(cfg.model.preprocess))
    return ImageDataModule(**data_options(cfg), preprocess=preprocess, seed=cfg.seed).prepare()


def make_checked_data(cfg: DictConfig) -> ImageDataModule:
    """The data to look at, with the preprocessing of the model that may be trained on them; nothing is read yet."""
    preprocess = default_preprocess(cfg.model.name, cfg.model.weights).updated(_plain(cfg.model.preprocess))
    return ImageDataModule(**data_options(cfg), preprocess=preprocess)


def make_classifier(cfg: DictConfig) -> Classifier:
    """The model of `ckpt`, where and how `device`, `precision` and `tta` say, with a line on it."""
    model = load(cfg.ckpt, cfg.device, cfg.precision, cfg.tta)
    epoch = model.module.about["validated"].get("epoch")
    trained = f", epoch {epoch + 1} of its run" if epoch is not None else ""
    text = f"{model.module.hparams['model']} for {len(model.classes)} classes{trained}; here on {model.device.type}, {model.precision}"
    say(entry("Model", text))
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
    return {**_plain(cfg.strategy), "name": strategy_name()}


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
    options = {k: v for k, v in _plain(cfg.trainer).items() if k != "compile"}
    if options["precision"] == "auto":
        options["precision"] = machine.precision(machine.accelerator(options["accelerator"]))
    history = History(folder / "metrics.csv", cfg.monitor)
    beside = resume_path(cfg).parent if cfg.ckpt_path is not None else None
    bar = [Bar()] if console().is_terminal else []
    callbacks: list[Callback] = [
        SeedEveryBatch(cfg.seed),
        *bar,
        *(make_callback(c) for c in _plain(cfg.get("callbacks")).values()),
        history,
        EpochLines(cfg.monitor, history),
        BestCheckpoint(folder / "checkpoints", cfg.monitor, beside),
        last_checkpoint(folder / "checkpoints"),
    ]
    make = config.factory(options, Trainer)
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


def make_callback(spec: dict[str, Any]) -> Callback:
    """A callback of the configuration; `mode: auto` follows from what it monitors."""
    if spec.get("mode") == "auto":
        spec = {**spec, "mode": mode_of(spec["monitor"])}
    made: Callback = config.factory(spec, Callback)()
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


def resume_path(cfg: DictConfig) -> Path:
    """The file that `ckpt_path` names; a run's folder stands for its last checkpoint."""
    path = Path(str(cfg.ckpt_path)).expanduser()
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"ckpt_path={cfg.ckpt_path}: there is no such file; give a run's checkpoints/last.ckpt."
        )
    return path


def check_resume(cfg: DictConfig, module: FineTuner) -> Path | None:
    """The checkpoint to go on from, after a look at whether it belongs to this configuration.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of a run, or of another model, other classes or another strategy.
    """
    if cfg.ckpt_path is None:
        return None
    path = resume_path(cfg)
    stored = read_tensors(path)
    if "optimizer_states" not in stored or "hyper_parameters" not in stored:
        raise ValueError(
            f"ckpt_path={path} holds weights but not the state of a run; to start from it, give model.weights={path}."
        )
    for key in ("model", "classes", "strategy"):
        was, now = stored["hyper_parameters"].get(key), module.hparams[key]
        if key == "strategy" and isinstance(was, dict):
            was, now = _what_learns(was), _what_learns(now)
        if was != now:
            raise ValueError(
                f"ckpt_path={path} is of another run: its {key} is {_short(was)}, this run's is {_short(now)}. Give the same "
                f"choices as then, or start a new run from its weights with model.weights={path}."
            )
    was, now = stored.get("max_epochs"), cfg.trainer.max_epochs
    planned = any({"T_max", "total_steps"} & set(state) for state in stored["lr_schedulers"])
    if was != now and (planned or any(0 < (g.start or 0) < 1 for g in module.plan.groups)):
        raise ValueError(
            f"ckpt_path={path} is of a run of {was} epochs, and its schedule was made for that length; "
            f"give trainer.max_epochs={was}, not {now}."
        )
    if cfg.trainer.max_epochs is not None and 0 < cfg.trainer.max_epochs <= stored["epoch"] + 1:
        say(
            f"{path} has finished epoch {stored['epoch'] + 1} of {cfg.trainer.max_epochs}: nothing is left to train "
            "(a larger trainer.max_epochs goes on)."
        )
    return path


def _what_learns(strategy: dict[str, Any]) -> dict[str, Any]:
    """A strategy without how it is computed; a field that came later has its default."""
    fields = Strategy.load(strategy).to_dict()
    return {k: v for k, v in fields.items() if k not in ("cache", "cache_dtype")}


def _short(value: Any) -> str:
    text = str(value.get("name")) if isinstance(value, dict) else str(value)
    return text if len(text) < 120 else text[:117] + "..."
