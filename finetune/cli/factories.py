"""Make objects from a configuration: the only place that reads `cfg`, so that classes take plain arguments."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from torchmetrics import Metric

from finetune.checkpoints.restore import AtomicCheckpointIO
from finetune.cli import instantiate
from finetune.cli.augmentation import make_augmentation
from finetune.cli.instantiate import plain_values
from finetune.cli.loggers import make_loggers
from finetune.cli.points import saved_states
from finetune.cli.run_folder import began, first_folder, goes_on
from finetune.cli.schema import conf_keys
from finetune.data.datamodule import ImageDataModule
from finetune.data.splitting import NO_VALIDATION
from finetune.images.transforms import Preprocess
from finetune.inference.classifier import Classifier, load
from finetune.inference.selective import choose_threshold
from finetune.io import files, paths
from finetune.io.study import storage_address
from finetune.models import candidates
from finetune.models.candidates import Candidate
from finetune.models.libraries import default_preprocess
from finetune.runtime import hardware, process
from finetune.runtime.console import IGNORED_WARNINGS, echo, field_line, make_console
from finetune.runtime.passwords import without_passwords
from finetune.runtime.process import cpu_count
from finetune.runtime.timing import parse_duration
from finetune.tracking.run_logger import TrackEpochs
from finetune.training import ranking, resume_check
from finetune.training.callbacks import BestCheckpoint, LastCheckpoint, SeedEveryBatch
from finetune.training.history import History
from finetune.training.lr_finder import AUTO, LRFinder
from finetune.training.module import FineTuner
from finetune.training.out_of_fold import OutOfFoldValidation
from finetune.training.progress import EpochSummary, ProgressBar
from finetune.training.pruning import TrialPruning
from finetune.training.shutdown import GracefulShutdown
from finetune.training.time_limit import TimeLimit


def prepare_process() -> None:
    """Set what concerns the whole process: third-party warnings, threads, freed memory, TF32 in matrix products of GPUs.

    TF32 is on by default in convolutions.
    """
    quiet()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cpu_count():
        # torch knows nothing of the cores that Slurm or a sweep has given to this process
        torch.set_num_threads(cpu_count())
    hardware.keep_freed_memory()
    torch.set_float32_matmul_precision("high")


def quiet() -> None:
    """Silence known third-party warnings and log lines."""
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


def _factory(node: DictConfig, base: type, *own_keys: str) -> partial[Any] | None:
    """Return what `_target_` names as a partial, without the keys of this package; None where it names nothing."""
    values = {k: v for k, v in plain_values(node).items() if k not in own_keys}
    return instantiate.factory(values, base) if values.get("_target_") else None


def _optimizer_factory(node: DictConfig) -> partial[Any] | None:
    """Return the optimizer that `_target_` names as a partial; None where it names nothing."""
    values = plain_values(node)
    if values.get("lr") == AUTO:
        values["lr"] = 1.0  # an optimizer may have no default; LRFinder replaces it before the first step
    if isinstance(values.get("base"), dict):  # the optimizer that SAM steps
        values["base"] = instantiate.factory(values["base"], Optimizer)
    return instantiate.factory(values, Optimizer) if values.get("_target_") else None


def data_options(cfg: DictConfig, preprocess: Preprocess | None = None) -> dict[str, Any]:
    """Return the arguments of `ImageDataModule`.

    Args:
        cfg: with the sections data and paths.
        preprocess: of the weights; None where nothing is trained, and so nothing augmented.
    """
    options = {k: v for k, v in plain_values(cfg.data).items() if not (k == "batch_size" and v is None)}
    if options["dataset"] is not None:
        options["dataset"] = instantiate.factory(options["dataset"], Dataset)
    if isinstance(options["augment"], dict):
        listed = options.pop("augment")["transforms"]
        if preprocess is not None:
            size = preprocess.updated({"size": options["image_size"]}).size
            options["train_transform"] = make_augmentation(listed, size)
    return {**options, "preprocess": preprocess, "cache_dir": cfg.paths.cache_dir, "cache_gib": cfg.paths.cache_gib}


def make_data(cfg: DictConfig) -> ImageDataModule:
    """Find the images, with the preprocessing of the model's weights; nothing of the network is built yet."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    options = data_options(cfg, _preprocess(cfg))
    if cfg.eval == "kfold":
        options["val"] = NO_VALIDATION
    return ImageDataModule(**options, seed=cfg.seed).prepare()


def make_checked_data(cfg: DictConfig) -> ImageDataModule:
    """Make the data to check, with the preprocessing of the model that may be trained on them; nothing is read yet."""
    return ImageDataModule(**data_options(cfg, _preprocess(cfg)))


def _preprocess(cfg: DictConfig) -> Preprocess:
    model = cfg.model
    preprocess = default_preprocess(
        model_name(cfg), model.weights, model.in_channels, options=plain_values(model.options)
    )
    return preprocess.updated(plain_values(model.preprocess))


def model_name(cfg: DictConfig) -> str:
    """Return the name of a configuration's model, with the prefix of its library."""
    prefix = f"{cfg.model.library}:"
    name = str(cfg.model.name)
    return name if cfg.model.library == "torchvision" or name.startswith(prefix) else f"{prefix}{name}"


def make_candidates(cfg: DictConfig) -> list[Candidate]:
    """Return the backbones to rank; print a line where there is no network for the default ones.

    Raises:
        ValueError: no weights are on this machine, and they cannot be downloaded.
    """
    if cfg.models is not None:
        models: Any = OmegaConf.to_container(cfg.models) if not isinstance(cfg.models, str) else cfg.models
        return candidates.parse_candidates(models, str(cfg.weights))
    found, note = candidates.default_candidates(str(cfg.weights))
    if note:
        echo(field_line("Note", note))
    return found


def make_ranked_data(cfg: DictConfig) -> ImageDataModule:
    """Find the images that backbones are ranked on; each network gets its own preprocessing later."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.data.augment not in ("auto", "light", "none") or cfg.data.random_erasing:
        echo(field_line("Note", "backbones are ranked on the plain images, without augmentation."))
    # features are of the plain images
    options = {**data_options(cfg), **dict.fromkeys(("augment", "flip"), "auto"), "random_erasing": 0.0}
    return ImageDataModule(**options, seed=cfg.seed).prepare()


def make_ranked_module(cfg: DictConfig, candidate: Candidate, data: ImageDataModule, folder: Path) -> FineTuner:
    """Make the network that `finetune.train model=... strategy=feature_extract` makes, where that would train it.

    Args:
        cfg: with the section trainer.
        candidate: the model and its weights.
        data: get the preprocessing of the weights.
        folder: of the command.

    Raises:
        ValueError: the model or the weights are unknown, do not fit, or several devices were asked for.
        FileNotFoundError: weights that are not there and cannot be downloaded.
    """
    seed_everything(cfg.seed, workers=True, verbose=False)  # random weights too are those of a run
    data.preprocess = default_preprocess(candidate.model, candidate.weights)
    module = FineTuner(
        candidate.model,
        data.classes,
        "feature_extract",
        weights=candidate.weights,
        preprocess=data.final_preprocess.to_dict(),
    )
    trainer = _make_trainer(cfg, folder, logger=False, enable_checkpointing=False)
    if trainer.world_size > 1:
        raise ValueError(f"Backbones are ranked on one device, not on trainer.devices={cfg.trainer.devices}.")
    return ranking.place(module, data, trainer)


def make_classifier(cfg: DictConfig) -> Classifier:
    """Load the model of `ckpt`, as `device`, `precision`, `tta` and `temperature` say, and print a line on it."""
    max_pixels = OmegaConf.select(cfg, "data.max_pixels")
    model = load(cfg.ckpt, cfg.device, cfg.precision, cfg.tta, max_pixels, cfg.temperature)
    epoch = model.module.metadata.validation.epoch
    trained = f", epoch {epoch} of its run" if epoch is not None else ""
    text = f"{model.module.model_name} for {len(model.classes)} classes{trained}; here on {model.device.type}, {model.precision}"
    text += model.describe_temperature() + model.describe_flip()
    echo(field_line("Model", text))
    return model


def make_threshold(cfg: DictConfig, model: Classifier) -> float | None:
    """Return the least confidence of predictions that are accepted, and print how it was chosen; None where all are.

    Raises:
        ValueError: `target_precision` cannot be reached, or the checkpoint has nothing to choose a threshold by.
    """
    if cfg.target_precision is None:
        return None if cfg.min_confidence is None else float(cfg.min_confidence)
    threshold = choose_threshold(model.module.metadata.calibration, cfg.target_precision)
    echo(field_line("Accepted", threshold.describe()))
    if cfg.tta != "none":
        text = (
            f"that was measured without tta={cfg.tta}, whose confidences are others: accuracy and coverage may be too."
        )
        echo(field_line("Note", text))
    return threshold.confidence


def make_evaluation_data(cfg: DictConfig, model: Classifier) -> ImageDataModule:
    """Make the data to evaluate a model on; nothing is read yet.

    Raises:
        ValueError: `data=csv` was given without a table.
    """
    if _hydra_choice("data") == "csv" and cfg.data.root is None:
        raise ValueError("data.root is missing: give the table as data.root=...")
    options = data_options(cfg)
    if options["class_depth"] == "auto":  # its class names are those of the run
        options["class_depth"] = model.module.metadata.config.get("data", {}).get("class_depth", "auto")
    data = ImageDataModule(**options)
    data.preprocess = model.module.preprocess
    return data


def _hydra_choice(group: str) -> str | None:
    """Return the option of a config group that was chosen."""
    from hydra.core.hydra_config import HydraConfig  # here: the page of a run is written without hydra too

    choice: str | None = HydraConfig.get().runtime.choices.get(group)
    return choice


def make_module(cfg: DictConfig, data: ImageDataModule) -> FineTuner:
    """Make the network with a head for the data's classes, its strategy, optimizer, scheduler and loss."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.loss.class_weights == "auto" and data.sampler != "none":
        text = f"loss.class_weights=auto and data.sampler={data.sampler} are both on: rare classes count twice over."
        echo(field_line("Note", text))
    module = FineTuner(
        model_name(cfg),
        data.classes,
        {**plain_values(cfg.strategy), "name": _hydra_choice("strategy") or "custom"},
        weights=cfg.model.weights,
        head_init=cfg.model.head_init,
        preprocess=data.final_preprocess.to_dict(),
        optimizer=_optimizer_factory(cfg.optimizer),
        scheduler=_factory(cfg.scheduler, LRScheduler, "warmup", "interval"),
        scheduler_interval=cfg.scheduler.interval,
        warmup=cfg.scheduler.warmup,
        monitor=cfg.monitor,
        loss=_factory(cfg.loss, nn.Module, *conf_keys("loss/_base.yaml")[1:]),
        metrics=make_metrics(cfg, len(data.classes)),
        label_smoothing=cfg.loss.label_smoothing,
        class_weights=data.class_weights() if cfg.loss.class_weights == "auto" else None,
        aux_weight=cfg.loss.aux,
        in_channels=cfg.model.in_channels,
        model_options=plain_values(cfg.model.options),
        mixup=cfg.loss.mixup,
        cutmix=cfg.loss.cutmix,
    )
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    module.metadata = replace(module.metadata, config=without_passwords(values))  # the file is handed on
    if cfg.trainer.compile is True:
        module.backbone.compile()
    return module


def make_metrics(cfg: DictConfig, num_classes: int) -> dict[str, Metric]:
    """Make the further metrics of a configuration, by name; `num_classes` is filled in where it is taken."""
    metrics: dict[str, Metric] = {}
    for name, spec in plain_values(cfg.get("metrics")).items():
        make = instantiate.factory(spec, Metric)
        fills = "num_classes" in signature(make.func).parameters and "num_classes" not in make.keywords
        metrics[name] = make(num_classes=num_classes) if fills else make()
    return metrics


def make_evaluation_metrics(cfg: DictConfig, model: Classifier) -> dict[str, Metric]:
    """Make the further metrics of an evaluation; say which the model's run had and this one has not."""
    metrics = make_metrics(cfg, len(model.classes))
    # nothing that a file says is instantiated
    missing = [str(name) for name in model.module.metadata.config.get("metrics") or {} if name not in metrics]
    if missing:
        echo(field_line("Note", f"its run measured {', '.join(missing)} too: +metrics=[{','.join(missing)}]."))
    return metrics


def make_trainer(cfg: DictConfig, folder: Path, mode_of: Callable[[str], str]) -> Trainer:
    """Make Lightning's Trainer, with the history, checkpoints and seeds of a run in `folder`.

    Args:
        cfg: of the run.
        folder: of the run.
        mode_of: returns "min" or "max" for the name of a metric.
    """
    loggers = make_loggers(cfg, folder, model_name(cfg))
    history = History(folder / "metrics.csv", cfg.monitor, mode_of(cfg.monitor))
    resumed_folder = paths.last_checkpoint_path(str(cfg.ckpt_path)).parent if cfg.ckpt_path is not None else None
    bar = [ProgressBar()] if make_console().is_terminal else []
    searches = cfg.optimizer.get("lr") == AUTO
    callbacks: list[Callback] = [
        *([LRFinder(folder / "config.yaml")] if searches else []),
        SeedEveryBatch(cfg.seed),
        *bar,
        *([OutOfFoldValidation()] if cfg.eval == "kfold" else []),
        *(make_callback(c, mode_of) for c in plain_values(cfg.get("callbacks")).values()),
        *_pruning(cfg),
        history,
        EpochSummary(history),
        GracefulShutdown(folder / "checkpoints" / "last.ckpt"),
        BestCheckpoint(folder / "checkpoints", cfg.monitor, resumed_folder, mode_of(cfg.monitor)),
        LastCheckpoint(folder / "checkpoints"),
        *_time_limit(cfg, folder),
        TrackEpochs(loggers),
    ]
    limits = {"limit_val_batches": 0} if cfg.data.val == NO_VALIDATION or cfg.eval == "kfold" else {}
    return _make_trainer(
        cfg,
        folder,
        **limits,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
    )


def _pruning(cfg: DictConfig) -> list[Callback]:
    """Return what reports to the study of a sweep, where the run is a trial of one."""
    sweep = plain_values(cfg.get("sweep"))
    if sweep.get("trial") is None:
        return []
    from hydra.core.hydra_config import HydraConfig

    # a sweep file of the user's own may leave these out
    address = storage_address(sweep.get("storage"), HydraConfig.get().sweep.dir)
    pruner = sweep.get("pruner", "none")
    return [TrialPruning(address, sweep.get("study_name"), sweep["trial"], pruner, cfg.monitor)]


def _time_limit(cfg: DictConfig, folder: Path) -> list[Callback]:
    """Return what ends the run in time, where there is a limit."""
    if cfg.get("time_limit") is None:
        return []
    last = folder / "checkpoints" / "last.ckpt"
    return [TimeLimit(parse_duration(cfg.time_limit), began(), last, report=bool(cfg.report))]


def _make_trainer(cfg: DictConfig, folder: Path, **arguments: Any) -> Trainer:
    """Make the Trainer that the configuration names, on devices that are there, in the precision that they compute."""
    options = {k: v for k, v in plain_values(cfg.trainer).items() if k != "compile"}
    _check_devices(options["accelerator"], options["devices"])
    if options["precision"] == "auto":
        options["precision"] = hardware.native_precision(hardware.resolve_accelerator(options["accelerator"]))
    make = instantiate.factory(options, Trainer)
    try:
        trainer: Trainer = make(
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the data module's neither pads nor forgets the epoch
            **arguments,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"trainer: {error}") from error
    except RuntimeError as error:
        if "--ntasks-per-node" not in str(error):
            raise
        raise ValueError(f"trainer: {error}") from error
    return trainer


MIN_CPU_PROCESSES = 8
"""Number of processes that may share a CPU, however few its cores are."""


def _check_devices(accelerator: str, devices: Any) -> None:
    """Refuse devices that are not there: Lightning names its own arguments, and starts any number of processes on a CPU."""
    available = hardware.resolve_accelerator(accelerator)
    if accelerator in ("cuda", "gpu", "mps") and available == "cpu":
        raise ValueError(
            f"trainer.accelerator={accelerator}: torch {torch.__version__} finds no such device here; trainer=auto takes "
            "what there is, trainer=cpu the processor."
        )
    if available == "cpu" and isinstance(devices, int) and devices > max(MIN_CPU_PROCESSES, cpu_count()):
        raise ValueError(f"trainer.devices={devices}: that many processes do not fit on {cpu_count()} processor cores.")


def make_callback(spec: dict[str, Any], mode_of: Callable[[str], str]) -> Callback:
    """Make a callback of the configuration; `mode: auto` follows from what it monitors."""
    if spec.get("mode") == "auto":
        spec = {**spec, "mode": mode_of(spec["monitor"])}
    callback: Callback = instantiate.factory(spec, Callback)()
    return callback


def resume_path(cfg: DictConfig, module: FineTuner, data: ImageDataModule, folder: Path) -> Path | None:
    """Return the checkpoint to go on from, if there is one, and check that it belongs to this configuration.

    Args:
        cfg: whose `ckpt_path` names it.
        module: that is to go on.
        data: that it goes on with.
        folder: of the run; a requeued run goes on with what it saved there itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of a run, or of another run.
    """
    path = None if cfg.ckpt_path is None else paths.last_checkpoint_path(str(cfg.ckpt_path))
    if goes_on():
        first = first_folder(cfg, folder)
        path = max(saved_states(first), key=lambda file: file.stat().st_mtime, default=path)
    if path is None:
        return None
    resume_check.check_resumable(path, module, data.record())
    last = folder / paths.LAST_CHECKPOINT
    if process.is_first_process() and not last.exists():
        files.copy_file(path, last)  # until this run has saved something itself
    return path
